"""Shared by the pictures of all commands. matplotlib is an optional dependency."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from baracuda_kernels.cli._console import check_target, written
from baracuda_kernels.errors import UnsupportedError

_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Check, before any work, that the picture can be drawn.

    Raises
    ------
    UnsupportedError
        If matplotlib is not installed.
    FileProblemError
        If the name has another suffix, or the file cannot be written.
    """
    check_target(path, _SUFFIXES)
    figure_module()


def figure_module() -> Any:
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UnsupportedError(
            "--plot needs matplotlib: pip install matplotlib (from a clone: pip install '.[bench]')"
        ) from error


def save(figure: Any, path: Path) -> None:
    """Write the figure, or raise `FileProblemError`."""
    with written(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix[1:])
