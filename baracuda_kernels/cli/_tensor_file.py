"""Named tensors in .safetensors and .npz files; nothing here unpickles anything."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels.cli._console import FileProblemError

SUFFIXES = (".safetensors", ".npz")


def check_suffix(path: Path) -> None:
    """FileProblemError unless the file's name says safetensors or npz."""
    if path.suffix not in SUFFIXES:
        raise FileProblemError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")


def check_writable(path: Path) -> None:
    """FileProblemError unless the name fits and its folder is there; before any long work."""
    check_suffix(path)
    if not path.parent.is_dir():
        raise FileProblemError(f"{path}: there is no folder {path.parent}")


def read_tensors(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named tensors of a file, as NumPy arrays (bfloat16 by ml_dtypes).

    Raises
    ------
    FileProblemError
        If the file cannot be read, lacks one of the names, or holds a dtype that it cannot carry.
    """
    check_suffix(path)
    if not path.is_file():
        raise FileProblemError(f"{path}: no such file")
    tensors = _read_safetensors(path, names) if path.suffix != ".npz" else _read_npz(path, names)
    for name, x in tensors.items():
        if x.dtype.kind == "V" and ElementKind.of_dtype(x.dtype) is None:
            raise FileProblemError(
                f"{path}: {name} has dtype {x.dtype}, as bfloat16 has in .npz, which cannot name "
                "it; store it as .safetensors"
            )
    return tensors


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write tensors under their names.

    Raises
    ------
    FileProblemError
        If the file cannot be written, or if bfloat16 is to go into an .npz.
    """
    check_writable(path)
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    check_storable(path, *tensors.values())
    try:
        if path.suffix == ".npz":
            np.savez(path, **tensors)
        else:
            save_file(tensors, str(path))
    except (OSError, SafetensorError) as error:
        raise FileProblemError(f"{path}: {error}") from error


def check_storable(path: Path, *tensors: np.ndarray) -> None:
    """FileProblemError where the format cannot name the dtype of one of the tensors."""
    for x in tensors:
        if path.suffix == ".npz" and x.dtype.kind == "V":  # of ml_dtypes
            raise FileProblemError(f"{path}: .npz cannot hold {x.dtype}; use .safetensors")


def _read_safetensors(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with safe_open(str(path), framework="np") as file:
            _check_names(path, names, list(file.keys()))
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        if isinstance(error, FileProblemError):
            raise
        raise FileProblemError(f"{path}: {error}") from error


def _read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise FileProblemError(f"{path}: holds one array, not a named set")
            _check_names(path, names, list(file.files))
            return {name: file[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileProblemError):
            raise
        raise FileProblemError(f"{path}: {error}") from error


def _check_names(path: Path, wanted: tuple[str, ...], found: list[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        held = ", ".join(sorted(found)) or "nothing"
        raise FileProblemError(f"{path}: lacks {', '.join(missing)}; it holds {held}")
