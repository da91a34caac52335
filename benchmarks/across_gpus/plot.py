"""The picture of results across GPUs that stands in docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.rows import Result, Row

_LAYOUTS = ("zigzag", "striped", "contiguous")
_PEERS = {
    "context_parallel": ("PyTorch context_parallel", "tab:orange"),
    "all_gather": ("all-gather + PyTorch", "tab:gray"),
    "all_gather_own": ("all-gather + our kernel", "tab:blue"),
}
_GREENS = ("#1b7837", "#5aae61", "#a6dba0")
# Of a card where copy engines move the chunks of the other rings.
_BY_NCCL = ("ring by NCCL, zigzag", "#d9f0d3")


def draw(results: Sequence[Result], path: Path) -> None:
    """Write an SVG: % of ideal over P, one panel for each mask and number of rows."""
    rows = [row for result in results for row in result["rows"] if row["name"] == "scaling"]
    chunks = sorted({row["params"]["chunk"] for row in rows})
    with plots.saved(results, path, (plots.PAGE_WIDTH, 2 + 2.8 * len(chunks))) as figure:
        grid = figure.subplots(max(1, len(chunks)), 2, squeeze=False, sharey=True)
        for line, chunk in zip(grid, chunks, strict=False):
            for axes, causal in zip(line, (True, False), strict=True):
                _panel(axes, rows, chunk, causal)
        figure.suptitle(f"{results[0]['card']}: % of ideal, which is one GPU's time / P")
        # All panels name the same; a peer may be absent in some.
        bars = {b.get_label(): b for axes in grid.flat for b in axes.containers}
        labels = sorted(bars, key=_place)
        figure.legend([bars[x] for x in labels], labels, loc="outside lower center", ncols=3)


def _panel(axes: Any, rows: Sequence[Row], chunk: int, causal: bool) -> None:
    bars: dict[tuple[str, str], dict[int, float]] = {}
    beside_peer = any(row["params"].get("exchange") == "peer" for row in rows)
    for row in rows:
        p, ideal = row["params"], row["peers"]["ideal"]
        if (p["chunk"], p["causal"], p["what"]) != (chunk, causal, "eager"):
            continue
        color = _GREENS[_LAYOUTS.index(p["layout"])]
        label = f"ring, {p['layout']}"
        if p.get("exchange", "nccl") == "nccl" and beside_peer:
            if p["layout"] != _LAYOUTS[0]:
                continue  # one will do
            label, color = _BY_NCCL
        bars.setdefault((label, color), {})[p["ranks"]] = ideal / row["ours"]
        if p["layout"] == _LAYOUTS[0]:  # the others do the same whatever our layout
            for name, label in _PEERS.items():
                if name in row["peers"]:
                    bars.setdefault(label, {})[p["ranks"]] = ideal / row["peers"][name]
    ranks = sorted({p for heights in bars.values() for p in heights})
    width = 0.8 / max(1, len(bars))
    for number, (label, color) in enumerate(sorted(bars, key=lambda bar: _place(bar[0]))):
        heights = bars[label, color]
        at = [ranks.index(p) + (number - (len(bars) - 1) / 2) * width for p in heights]
        drawn = axes.bar(at, [100 * x for x in heights.values()], width, color=color, label=label)
        axes.bar_label(drawn, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(ranks)), [f"P = {p}" for p in ranks])
    axes.set_title(f"{chunk / 1024:g}k rows a GPU, {'causal' if causal else 'full'}")
    axes.set_ylim(0, 125)
    axes.axhline(100, color="black", linewidth=0.8)
    axes.grid(alpha=0.3, axis="y")


def _place(label: str) -> int:
    """Rings first."""
    labels = [f"ring, {layout}" for layout in _LAYOUTS]
    labels += [_BY_NCCL[0], *(label for label, _ in _PEERS.values())]
    return labels.index(label)
