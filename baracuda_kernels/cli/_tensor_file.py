"""Named tensors in .safetensors and .npz files. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels.cli._console import FileProblemError, check_target, written

SUFFIXES = (".safetensors", ".npz")
# The dtypes that kernels take, by their names in safetensors. Other dtypes are refused.
_SAFETENSORS_DTYPES = ("F16", "BF16", "F32", "F64")


def check_suffix(path: Path) -> None:
    """FileProblemError unless the file's name ends in .safetensors or .npz."""
    if path.suffix not in SUFFIXES:
        raise FileProblemError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")


def check_writable(path: Path, source: Path | None = None) -> None:
    """FileProblemError unless the file can be written, and is not `source`.

    Call it before any long work.
    """
    check_target(path, SUFFIXES)
    if source is not None and source.exists() and path.exists() and path.samefile(source):
        raise FileProblemError(f"{path}: is the input; the output must be another file")


def read_tensors(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named tensors of a file, as NumPy arrays (bfloat16 by ml_dtypes).

    Raises
    ------
    FileProblemError
        If the file cannot be read, lacks one of the names, or has a dtype that is not served.
    """
    check_suffix(path)
    if not path.is_file():
        raise FileProblemError(f"{path}: no such file")
    read = _read_npz if path.suffix == ".npz" else _read_safetensors
    try:
        tensors = read(path, names)
    except FileProblemError:
        raise
    except MemoryError as error:
        raise FileProblemError(f"{path}: does not fit into memory ({error})") from error
    except Exception as error:  # readers raise many kinds of errors for broken files
        raise FileProblemError(f"{path}: {error or type(error).__name__}") from error
    for name, x in tensors.items():
        if x.dtype.kind == "V" and ElementKind.of_dtype(x.dtype) is None:
            raise FileProblemError(
                f"{path}: {name} has dtype {x.dtype}, as bfloat16 has in .npz, which cannot name "
                "it; store it as .safetensors"
            )
    return tensors


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write named tensors.

    Raises
    ------
    FileProblemError
        If the file cannot be written, or if it is an .npz and a tensor is bfloat16.
    """
    check_writable(path)
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    check_storable(path, *tensors.values())
    if path.suffix == ".npz":
        arrays: dict[str, Any] = tensors
        with written(path) as file:
            np.savez(file, **arrays)
        return
    try:
        save_file(tensors, str(path))  # it too writes another file first, and renames it
    except Exception as error:  # OSError, or an error of safetensors
        raise FileProblemError(f"{path}: {error}") from error


def check_storable(path: Path, *tensors: np.ndarray) -> None:
    """FileProblemError if the format cannot name the dtype of one of the tensors."""
    for x in tensors:
        if path.suffix == ".npz" and x.dtype.kind == "V":  # a dtype of ml_dtypes
            raise FileProblemError(f"{path}: .npz cannot hold {x.dtype}; use .safetensors")


def _read_safetensors(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    with safe_open(str(path), framework="np") as file:
        _check_names(path, names, list(file.keys()))
        for name in names:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _SAFETENSORS_DTYPES:
                raise FileProblemError(
                    f"{path}: {name} has dtype {dtype}, must be one of "
                    f"{', '.join(_SAFETENSORS_DTYPES)}"
                )
        return {name: file.get_tensor(name) for name in names}


def _read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    with path.open("rb") as opened:  # np.load would leave a broken file open
        loaded = np.load(opened, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise FileProblemError(f"{path}: holds one array (.npy), not a named set")
        with loaded as file:
            _check_names(path, names, list(file.files))
            return {name: file[name] for name in names}


def _check_names(path: Path, wanted: tuple[str, ...], found: list[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        held = ", ".join(sorted(found)) or "nothing"
        raise FileProblemError(f"{path}: lacks {', '.join(missing)}; it holds {held}")
