"""Draws the pictures of concepts.md and writes its tables, by the package's own numbers.

python docs/draw_concepts.py [FOLDER]
"""

from __future__ import annotations

import math
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from draw_ring import COLORS, LAYOUTS, RANKS, bare, cell, frame, picture, rows_of_ranks
from matplotlib.patches import FancyArrowPatch

import baracuda_kernels as bk
from baracuda_kernels import predict

PALE = "#dddddd"
# The ring whose costs are drawn, and the rows of each of its ranks.
COUNTED_RANKS, COUNTED_ROWS = 8, 2048
# The call whose memory is drawn.
MEMORY = {"tokens": 2**20, "heads": 32, "kv_heads": 8, "head_dim": 128}
MEMORY_RANKS = (1, 2, 4, 8, 16, 32)
PARTS = ("q", "y", "k, v", "lse", "scratch A", "scratch B", "accumulator")
PART_COLORS = ("#4c78a8", "#9ecae9", "#54a24b", "#bab0ac", "#f58518", "#ffbf79", "#b279a2")


# ---- What a ring does ----------------------------------------------------------------------------


def draw_steps(path: Path) -> None:
    """A column a step: the ring with its chunks, and the blocks that are computed by then."""
    with picture(path, (9, 5)) as figure:
        panels = figure.subplots(2, RANKS)
        for step in range(RANKS):
            _ring(panels[0, step], step)
            _blocks(panels[1, step], step)


def _ring(axes: Any, step: int) -> None:
    places = [(math.sin(a), math.cos(a)) for a in (2 * math.pi * r / RANKS for r in range(RANKS))]
    for rank, (x, y) in enumerate(places):
        origin = (rank - step) % RANKS
        if step + 1 < RANKS:
            axes.add_patch(FancyArrowPatch(
                (x, y), places[(rank + 1) % RANKS], connectionstyle="arc3,rad=-0.3", shrinkA=26,
                shrinkB=26, arrowstyle="-|>", mutation_scale=12, color="#555555"))  # fmt: skip
        style = {"ha": "center", "va": "center", "fontsize": 9}
        outward = -0.2 if y < -0.5 else 0.2  # the name away from the arrows
        axes.text(x, y + outward, f"rank {rank}: Q{rank}", **style)
        box = {"facecolor": COLORS[origin], "edgecolor": "none", "boxstyle": "round,pad=0.2"}
        axes.text(x, y - outward, f"K{origin} V{origin}", color="white", bbox=box, **style)
    axes.set_title(f"step {step}", fontsize=10)
    axes.set_xlim(-1.7, 1.7)
    axes.set_ylim(-1.45, 1.45)
    axes.set_xticks([])
    axes.set_yticks([])
    bare(axes)


def _blocks(axes: Any, step: int) -> None:
    for rank in range(RANKS):
        for done in range(step + 1):
            origin = (rank - done) % RANKS
            now = done == step
            cell(axes, origin, rank, COLORS[origin] if now else PALE, str(done),
                 color="white" if now else "#777777")  # fmt: skip
    frame(axes, RANKS, "", "keys of chunk", range(RANKS), [f"Q{rank}" for rank in range(RANKS)])


# ---- Layouts -------------------------------------------------------------------------------------


def draw_layouts(path: Path) -> None:
    """Which rank has which rows, and whose work a causal mask leaves."""
    rows = 4
    with picture(path, (9, 5)) as figure:
        grid = figure.add_gridspec(2, 3, height_ratios=(1, 1.9))
        rows_of_ranks(figure.add_subplot(grid[0, :]), rows)
        for column, layout in enumerate(LAYOUTS):
            axes = figure.add_subplot(grid[1, column])
            for rank in range(RANKS):
                for row in map(int, bk.positions(rows, rank, RANKS, layout)):
                    axes.barh(row, row + 1, left=-0.5, height=0.9, color=COLORS[rank])
            total = RANKS * rows
            frame(axes, total, f"{layout}, causal", "key", range(0, total, 4),
                  [str(row) if row % 4 == 0 else "" for row in range(total)])  # fmt: skip
            axes.set_ylabel("row")


# ---- What a causal mask costs --------------------------------------------------------------------


@cache
def pairs(layout: str, ranks: int, rows: int = COUNTED_ROWS) -> np.ndarray:
    """Visible pairs by [step, rank], of a causal mask, in chunk pairs: 1 is a whole one."""
    rank = np.arange(ranks)
    return np.stack([
        predict.visible_pairs(rows, rank, (rank - step) % ranks, ranks, layout).total / rows**2
        for step in range(ranks)
    ])  # fmt: skip


def slowest(layout: str, ranks: int) -> float:
    """Work of a ring in lock step, where each step lasts as long as its slowest rank's: in units of
    the same work spread evenly."""
    work = pairs(layout, ranks)
    return float(work.max(axis=1).sum() / (work.sum() / ranks))


def draw_causal(path: Path) -> None:
    """Work of every rank in every step, in percent of a chunk pair."""
    with picture(path, (9, 3.8)) as figure:
        for axes, layout in zip(figure.subplots(1, len(LAYOUTS)), LAYOUTS, strict=True):
            work = pairs(layout, COUNTED_RANKS)
            for step, line in enumerate(work):
                for rank, part in enumerate(line):
                    shade = 1 - 0.8 * float(part)
                    text = "white" if shade < 0.55 else "#333333"
                    cell(axes, step, rank, str(shade), f"{part:.0%}"[:-1], color=text, fontsize=9)
            cost = f"{layout}: {slowest(layout, COUNTED_RANKS):.2f} × even work"
            frame(axes, COUNTED_RANKS, cost, "step", range(COUNTED_RANKS),
                  [str(rank) for rank in range(COUNTED_RANKS)])  # fmt: skip
            axes.set_ylabel("rank")


def causal_table() -> str:
    """The cost in lock step of each layout, by ranks."""
    counts = (2, 4, 8, 16, 64)
    lines = [f"| ranks | {' | '.join(map(str, counts))} |", "|---" * (len(counts) + 1) + "|"]
    for layout in LAYOUTS:
        cells = " | ".join(f"{slowest(layout, ranks):.3f}" for ranks in counts)
        lines.append(f"| {layout} | {cells} |")
    return "\n".join(lines)


# ---- Memory --------------------------------------------------------------------------------------


@cache
def memory(ranks: int) -> dict[str, int]:
    """Bytes of a rank by part: scratch as the plan says, operands by their shapes."""
    rows, heads = MEMORY["tokens"] // ranks, MEMORY["heads"]
    kv_heads, head_dim = MEMORY["kv_heads"], MEMORY["head_dim"]
    descriptor = bk.RingAttentionDescriptor(
        1, heads, rows, rows, head_dim, is_causal=True, element="BF16", num_kv_heads=kv_heads,
        sequence_layout="ZIGZAG",
    )  # fmt: skip
    plan = bk.RingAttentionPlan.select(descriptor, bk.Stream.host())
    size = descriptor.element.itemsize
    scratch = plan.kv_scratch_elements * size
    return {
        "q": heads * rows * head_dim * size,
        "y": heads * rows * head_dim * size,
        "k, v": 2 * kv_heads * rows * head_dim * size,
        "lse": heads * rows * 4,
        # With k and v given where they lie: received chunks alone are in scratch.
        "scratch A": scratch if ranks > 1 else 0,
        "scratch B": scratch if ranks > 2 else 0,
        "accumulator": plan.accumulator_scratch_bytes if ranks > 1 else 0,
    }


def draw_memory(path: Path) -> None:
    """A bar for each number of ranks, cut into its parts."""
    with picture(path, (9, 3.8)) as figure:
        axes = figure.subplots()
        names = [f"{ranks} ranks" if ranks > 1 else "1 GPU" for ranks in MEMORY_RANKS]
        left = np.zeros(len(names))
        for part, color in zip(PARTS, PART_COLORS, strict=True):
            widths = np.array([memory(ranks)[part] / 2**30 for ranks in MEMORY_RANKS])
            axes.barh(names, widths, left=left, color=color, label=part, edgecolor="white")
            left += widths
        for line, total in enumerate(left):
            axes.text(total, line, f"  {total:.3g} GiB", va="center")
        axes.set_xlim(0, left.max() * 1.12)
        axes.invert_yaxis()
        axes.set_xlabel("GiB of one rank")
        axes.legend(loc="lower right", ncols=2)
        bare(axes)


def memory_table() -> str:
    """The same by part."""
    lines = [f"| GiB of a rank | {' | '.join(PARTS)} | in all |", "|---" * (len(PARTS) + 2) + "|"]
    for ranks in MEMORY_RANKS:
        parts = memory(ranks)
        cells = [f"{parts[part] / 2**30:.3g}" for part in PARTS]
        name = f"{ranks} ranks" if ranks > 1 else "1 GPU"
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(parts.values()) / 2**30:.3g} |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------

PICTURES = {"steps": draw_steps, "layouts": draw_layouts, "causal": draw_causal,
            "memory": draw_memory}  # fmt: skip
TABLES = {"causal": causal_table, "memory": memory_table}


def page(text: str) -> str:
    """The page with its tables written anew."""
    for name, table in TABLES.items():
        found = re.findall(f"<!-- {name}: .*?<!-- end -->", text, flags=re.DOTALL)
        if len(found) != 1:
            raise ValueError(f"the page has {len(found)} places for the table {name}, must have 1")
        block = f"<!-- {name}: by draw_concepts.py -->\n\n{table()}\n\n<!-- end -->"
        text = text.replace(found[0], block)
    return text


def write(folder: Path) -> None:
    """All pictures, and the page."""
    for name, draw in PICTURES.items():
        draw(folder / f"concepts-{name}.svg")
    here = Path(__file__).parent / "concepts.md"
    (folder / "concepts.md").write_text(page(here.read_text()))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
