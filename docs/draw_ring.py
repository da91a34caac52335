"""Draws ring.svg: where the chunks of K and V are in each step, and which rank has which rows.

python docs/draw_ring.py [FOLDER]
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

import baracuda_kernels as bk

RANKS = 4
ROWS = 4  # of each rank
COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")
LAYOUTS = [layout.name.lower() for layout in bk.SequenceLayout]


def draw(path: Path) -> None:
    """The picture, the same bytes every time."""
    with picture(path, (9, 3)) as figure:
        hops, layouts = figure.subplots(1, 2, width_ratios=(1, 1.3))
        for rank in range(RANKS):
            for step in range(RANKS):
                origin = (rank - step) % RANKS
                cell(hops, step, rank, COLORS[origin], f"K{origin} V{origin}")
        frame(hops, RANKS, "each step, a chunk moves one rank on", "step", range(RANKS),
              [f"rank {r}: Q{r}" for r in range(RANKS)])  # fmt: skip
        rows_of_ranks(layouts, ROWS)


def rows_of_ranks(axes: Any, rows: int) -> None:
    """Every row of the sequence in the colour of its rank, a line for each layout."""
    for line, name in enumerate(LAYOUTS):
        for rank in range(RANKS):
            for row in bk.positions(rows, rank, RANKS, name):
                cell(axes, int(row), line, COLORS[rank], str(rank))
    frame(axes, RANKS * rows, "the rank that holds each row, by layout", "row of the sequence",
          range(0, RANKS * rows, rows // 4), LAYOUTS)  # fmt: skip


@contextlib.contextmanager
def picture(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure that becomes an SVG: its text stays text, and the same drawing the same bytes."""
    settings = {"svg.hashsalt": path.stem, "font.size": 10, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path, metadata={"Date": None})


def cell(axes: Any, x: float, y: float, fill: str, text: str, **style: Any) -> None:
    """A box of one by one around (x, y)."""
    axes.barh(y, 0.94, left=x - 0.47, height=0.86, color=fill)
    axes.text(x, y, text, ha="center", va="center", **{"color": "white", **style})


def frame(
    axes: Any, width: int, title: str, xlabel: str, xticks: range, yticks: list[str]
) -> None:
    """Titles and ticks around cells; the first line is the upper one."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_xticks(list(xticks))
    axes.set_yticks(range(len(yticks)), yticks)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(len(yticks) - 0.5, -0.5)
    bare(axes)


def bare(axes: Any) -> None:
    """No lines around it."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    draw(folder / "ring.svg")
