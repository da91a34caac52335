"""Draws ring.svg: where the chunks of K and V are in each step, and which rank has which rows.

python docs/draw_ring.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

import baracuda_kernels as bk

RANKS = 4
ROWS = 4  # of each rank
COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")


def draw(path: Path) -> None:
    """The picture, the same bytes every time."""
    matplotlib.rcParams.update({"svg.hashsalt": "ring", "font.size": 10, "svg.fonttype": "none"})
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    hops, layouts = figure.subplots(1, 2, width_ratios=(1, 1.3))
    for rank in range(RANKS):
        for step in range(RANKS):
            origin = (rank - step) % RANKS
            _cell(hops, step, rank, COLORS[origin], f"K{origin} V{origin}")
    _frame(hops, RANKS, "each step, a chunk moves one rank on", "step", range(RANKS),
           [f"rank {r}: Q{r}" for r in range(RANKS)])  # fmt: skip
    names = [layout.name.lower() for layout in bk.SequenceLayout]
    for line, name in enumerate(names):
        for rank in range(RANKS):
            for row in bk.positions(ROWS, rank, RANKS, name):
                _cell(layouts, int(row), line, COLORS[rank], str(rank))
    _frame(layouts, RANKS * ROWS, "the rank that holds each row, by layout", "row of the sequence",
           range(RANKS * ROWS), names)  # fmt: skip
    figure.savefig(path, metadata={"Date": None})


def _cell(axes, x, y, color, text):
    axes.barh(y, 0.94, left=x - 0.47, height=0.86, color=color)
    axes.text(x, y, text, ha="center", va="center", color="white")


def _frame(axes, width, title, xlabel, xticks, yticks):
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_xticks(list(xticks))
    axes.set_yticks(range(len(yticks)), yticks)
    axes.set_xlim(-0.5, width - 0.5)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    draw(folder / "ring.svg")
