"""The picture of ``plan --plot``: efficiency and exposed communication over ranks."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from baracuda_kernels.cli._console import FileProblemError
from baracuda_kernels.errors import UnsupportedError

_SUFFIXES = (".png", ".svg", ".pdf")
# Two lines may lie on each other, so they differ in more than colour.
_STYLES = {
    "contiguous": ("tab:red", "o", "-"),
    "zigzag": ("tab:blue", "s", "--"),
    "striped": ("tab:green", "^", ":"),
}


def check_plot(path: Path) -> None:
    """Before any work: whether the picture can be drawn there.

    Raises
    ------
    UnsupportedError
        If matplotlib is not installed.
    FileProblemError
        If the name has another suffix, or its folder is not there.
    """
    if path.suffix not in _SUFFIXES:
        raise FileProblemError(f"{path}: the name must end in {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise FileProblemError(f"{path}: there is no folder {path.parent}")
    figure_module()


def draw_plot(path: Path, result: Any) -> None:
    """Draw a `ScalingPlan`'s sweep.

    Raises
    ------
    UnsupportedError, FileProblemError
        As `check_plot`, and if the file cannot be written.
    """
    # Not pyplot: it would choose a backend, and keep the figure.
    figure = figure_module().Figure(figsize=(9, 4), layout="constrained")
    efficiency, exposed = figure.subplots(1, 2)
    layouts = [f.layout for f in result.forecasts]
    for layout in layouts:
        points = [f for f in result.sweep if f.layout is layout]
        ranks = [f.problem.ranks for f in points]
        name = layout.name.lower()
        color, marker, line = _STYLES[name]
        style = {"color": color, "marker": marker, "linestyle": line, "label": name}
        efficiency.plot(ranks, [100 * f.efficiency for f in points], **style)
        exposed.plot(ranks, [100 * f.exposed / f.seconds for f in points], **style)
    problem = result.problem
    for axes, title in ((efficiency, "efficiency, %"), (exposed, "exposed communication, %")):
        axes.set_title(title)
        axes.set_xlabel("ranks")
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        counts = sorted({f.problem.ranks for f in result.sweep})
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.set_ylim(-3, 105)
        axes.grid(alpha=0.3)
    efficiency.legend()
    mask = "causal" if problem.causal else "not causal"
    figure.suptitle(
        f"{problem.seq} tokens, H {problem.heads}/{problem.hkv}, D {problem.head_dim}, "
        f"{problem.dtype}, {mask}, {result.machine.link_gbps:g} Gbit/s"
    )
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise FileProblemError(f"{path}: {error}") from error


def figure_module() -> Any:
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UnsupportedError(
            "--plot needs matplotlib: pip install 'baracuda-kernels[bench]'"
        ) from error
