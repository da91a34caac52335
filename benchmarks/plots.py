"""The pictures of results that stand in docs/performance.md."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Result, Row
from benchmarks.tables import exchange, tflops

_PAGE_WIDTH = 9  # inches: what is drawn so wide can be read where a page is as wide as text
_TOKENS = 16384  # batch x sequence of the rows that are drawn
# Labels of peers.
_CALLS = {"cudnn": "cuDNN", "fa2": "FlashAttention-2", "fa3": "FlashAttention-3"}
_ACROSS = {"context_parallel": "PyTorch context_parallel", "all_gather": "all-gather + PyTorch",
           "ring_flash_attention": "ring-flash-attention",
           "all_gather_own": "all-gather + our kernel", "ulysses": "Ulysses + our kernel"}  # fmt: skip
# What is drawn of several GPUs: which rows of a kind, and what they are called.
_OF_SEVERAL = {"scaling": ("eager", "forward"), "training": ("step", "forward and backward")}
# By label; across GPUs they stand so in the legend.
_COLORS = {
    "sm90a": "tab:green", "sm90a, deterministic": "tab:olive",
    "cuDNN": "tab:orange", "FlashAttention-2": "tab:gray", "FlashAttention-3": "tab:red",
    "ring, zigzag": "#1b7837", "ring, striped": "#5aae61", "ring, contiguous": "#a6dba0",
    # Of a card where copy engines move the chunks of the other rings.
    "ring by NCCL, zigzag": "#d9f0d3", "PyTorch context_parallel": "tab:orange",
    "ring-flash-attention": "tab:pink",
    "all-gather + PyTorch": "tab:gray", "all-gather + our kernel": "tab:blue",
    "Ulysses + our kernel": "tab:cyan",
}  # fmt: skip


@contextlib.contextmanager
def _saved(results: Sequence[Result], path: Path, height: float) -> Iterator[Any]:
    """A matplotlib figure that becomes an SVG, marked with its results."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = json.dumps([row for result in results for row in result["rows"]], sort_keys=True)
    mark = f"rows {hashlib.sha256(rows.encode()).hexdigest()[:16]}"
    # Text stays text, and the same results give the same file.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": path.name, "axes.titlesize": 10}
    with matplotlib.rc_context(style):
        # Not pyplot: it would choose a backend, and keep the figure.
        figure = Figure(figsize=(_PAGE_WIDTH, height), layout="constrained")
        yield figure
        figure.savefig(path, metadata={"Date": None, "Description": mark})


def draw(result: Result, path: Path) -> None:
    """Write an SVG: attention's TFLOPS over the sequence, and what a ring's steps cost."""
    with _saved([result], path, 13) as figure:
        *grid, rest = figure.subplots(4, 2, height_ratios=(1, 1, 1, 1.5))
        _calls(figure, grid, result, "forward")
        _ring_tax(rest[0], result)
        _error(rest[1], result)
        figure.suptitle(f"{result['card']}, bf16")


def draw_backward(result: Result, path: Path) -> None:
    """Write an SVG: the TFLOPS of gradients over the sequence."""
    with _saved([result], path, 10) as figure:
        _calls(figure, figure.subplots(3, 2), result, "backward")
        figure.suptitle(f"{result['card']}, bf16: gradients")


def draw_across(results: Sequence[Result], path: Path, kind: str = "scaling") -> None:
    """Write an SVG: % of ideal over P, one panel for each mask and number of rows.

    `kind` is that of the rows, "scaling" or "training". Of rings with more heads than others only
    the table tells, and of JAX's.
    """
    what, called = _OF_SEVERAL[kind]
    every = [row for result in results for row in result["rows"]]
    rows = [r for r in _matching(every, kind, what=what) if "framework" not in r["params"]]
    fewest = min((row["params"]["heads"] for row in rows), default=0)
    rows = [row for row in rows if row["params"]["heads"] == fewest]
    chunks = sorted({row["params"]["chunk"] for row in rows})
    with _saved(results, path, 2 + 2.8 * len(chunks)) as figure:
        grid = figure.subplots(max(1, len(chunks)), 2, squeeze=False, sharey=True)
        for line, chunk in zip(grid, chunks, strict=False):
            for axes, causal in zip(line, (True, False), strict=True):
                _share_of_ideal(axes, rows, chunk, causal)
        figure.suptitle(f"{results[0]['card']}, {called}: % of ideal, which is one GPU's time / P")
        # All panels name the same; a peer may be absent in some.
        bars = {b.get_label(): b for axes in grid.flat for b in axes.containers}
        labels = [label for label in _COLORS if label in bars]
        figure.legend([bars[x] for x in labels], labels, loc="outside lower center", ncols=3)


def _matching(rows: Sequence[Row], name: str, **params: Any) -> list[Row]:
    """Those of a kind that have these params."""
    return [r for r in rows if r["name"] == name and params.items() <= r["params"].items()]


def _calls(figure: Any, grid: Any, result: Result, direction: str) -> None:
    """TFLOPS of one call at batch x sequence = 16384 and heads x head_dim = 2048, as sustained."""
    handles: dict[str, Any] = {}  # not every panel has all
    of: dict[str, Any] = {"family": "sm90a", "dtype": "bf16"}
    for panels, head_dim in zip(grid, (64, 128, 256), strict=True):
        of |= {"head_dim": head_dim, "heads": 2048 // head_dim, "kv_heads": 2048 // head_dim}
        for axes, causal in zip(panels, (False, True), strict=True):
            rows = _matching(result["rows"], direction, **of, causal=causal)
            for label, points in _lines(rows).items():
                _line(axes, points, color=_COLORS[label], label=label)
            axes.set_title(f"D {head_dim}, {'causal' if causal else 'no mask'}: TFLOPS by length")
            axes.set_ylim(0, 850)
            axes.grid(alpha=0.3)
            lines, labels = axes.get_legend_handles_labels()
            handles |= zip(labels, lines, strict=True)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)


def _lines(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """By label, TFLOPS by length."""
    lines: dict[str, dict[int, float]] = {}
    for row in rows:
        p, figures = row["params"], row.get("sustained", row)
        if p["batch"] * p["query_len"] != _TOKENS:
            continue
        if p.get("guarantee") == "deterministic":
            times = {"sm90a, deterministic": figures["ours"]}
        else:
            peers = figures["peers"].items()
            times = {"sm90a": figures["ours"]} | {_CALLS[x]: ms for x, ms in peers if x in _CALLS}
        for label, ms in times.items():
            lines.setdefault(label, {})[p["query_len"]] = tflops(row, ms)
    return lines


def _line(axes: Any, points: dict[int, float], **style: Any) -> None:
    """By length."""
    lengths = sorted(points)
    axes.plot(lengths, [points[length] for length in lengths], marker="o", **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length / 1024:g}k" for length in lengths])


def _ring_tax(axes: Any, result: Result) -> None:
    """Eight steps of one rank over one call on all keys (ours or cuDNN's, the faster)."""
    of = {"family": "sm90a", "dtype": "bf16", "head_dim": 128, "ranks": 8, "causal": False}
    rows = _matching(result["rows"], "ring_tax", **of)
    points = {row["params"]["chunk"]: row["ours"] / row["peers"]["one_call"] for row in rows}
    _line(axes, points, color=_COLORS["sm90a"])
    axes.set_title("D 128: time of 8 steps / one call, by chunk")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.grid(alpha=0.3)


def _error(axes: Any, result: Result) -> None:
    """Error of rings beside that of cuDNN's single call."""
    bars = {}
    for row in _matching(result["rows"], "error", dtype="bf16"):
        p = row["params"]
        if "cudnn" in row["peers"]:
            label = f"{p['family']} P {p['ranks']} {p['distribution']}"
            bars[label] = row["ours"] / row["peers"]["cudnn"]
    axes.barh(list(bars), list(bars.values()), color="tab:purple")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=9)
    axes.set_title("rms error / cuDNN's single call")


def _share_of_ideal(axes: Any, rows: Sequence[Row], chunk: int, causal: bool) -> None:
    bars: dict[str, dict[int, float]] = {}
    beside_peer = any(exchange(row) == "peer" for row in rows)
    of_panel = [r for r in rows if (r["params"]["chunk"], r["params"]["causal"]) == (chunk, causal)]
    # The layout in which the others' figures stand: they do the same whatever our layout.
    layouts = {row["params"]["layout"] for row in of_panel}
    balanced = "zigzag" if "zigzag" in layouts else "contiguous"
    for row in of_panel:
        p, ideal = row["params"], row["peers"]["ideal"]
        by_nccl = exchange(row) == "nccl" and beside_peer
        if p["layout"] == "zigzag" or not by_nccl:  # of those by NCCL one will do
            label = "ring by NCCL, zigzag" if by_nccl else f"ring, {p['layout']}"
            bars.setdefault(label, {})[p["ranks"]] = ideal / row["ours"]
        if p["layout"] == balanced:
            for name, label in _ACROSS.items():
                if name in row["peers"]:
                    bars.setdefault(label, {})[p["ranks"]] = ideal / row["peers"][name]
    ranks = sorted({p for heights in bars.values() for p in heights})
    width = 0.8 / max(1, len(bars))
    for number, label in enumerate(label for label in _COLORS if label in bars):
        heights = bars[label]
        at = [ranks.index(p) + (number - (len(bars) - 1) / 2) * width for p in heights]
        shares = [100 * x for x in heights.values()]
        drawn = axes.bar(at, shares, width, color=_COLORS[label], label=label)
        axes.bar_label(drawn, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(ranks)), [f"P = {p}" for p in ranks])
    axes.set_title(f"{chunk / 1024:g}k rows a GPU, {'causal' if causal else 'full'}")
    axes.set_ylim(0, 125)
    axes.axhline(100, color="black", linewidth=0.8)
    axes.grid(alpha=0.3, axis="y")
