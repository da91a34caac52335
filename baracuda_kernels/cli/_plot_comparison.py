"""The picture of ``predict --plot``: efficiency and exposed communication over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baracuda_kernels.cli._plot import figure_module, save

# Two lines may cover each other, so they differ in more than colour.
_STYLES = {
    "contiguous": ("tab:red", "o", "-"),
    "zigzag": ("tab:blue", "s", "--"),
    "striped": ("tab:green", "^", ":"),
}


def draw_plot(path: Path, result: Any) -> None:
    """Draw a `Comparison`'s sweep.

    Raises
    ------
    UnsupportedError, FileProblemError
        As `_plot.check_plot`, and if the file cannot be written.
    """
    # Not pyplot, which would choose a backend and keep the figure.
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
    save(figure, path)
