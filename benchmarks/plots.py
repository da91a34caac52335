"""The picture of one card's results that stands in docs/performance.md."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Result
from benchmarks.tables import tflops

PAGE_WIDTH = 9  # inches: what is drawn so wide can be read where a page is as wide as text
_TOKENS = 16384  # batch x sequence of the rows that are drawn
_COLORS = {
    "sm90a": "tab:green", "sm90a, deterministic": "tab:olive", "sm80": "tab:blue",
    "cudnn": "tab:orange", "fa2": "tab:gray", "fa3": "tab:red",
}  # fmt: skip
_NAMES = {"cudnn": "cuDNN", "fa2": "FlashAttention-2", "fa3": "FlashAttention-3"}


def mark(results: Sequence[Result]) -> str:
    """What a picture of these results is marked with, so that an old one is found out."""
    rows = json.dumps([row for result in results for row in result["rows"]], sort_keys=True)
    return f"rows {hashlib.sha256(rows.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def saved(results: Sequence[Result], path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A matplotlib figure that becomes an SVG, marked with its results."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and the same results give the same file.
    style = {"svg.fonttype": "none", "svg.hashsalt": path.name, "axes.titlesize": 10}
    with matplotlib.rc_context(style):
        # Not pyplot: it would choose a backend, and keep the figure.
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path, metadata={"Date": None, "Description": mark(results)})


def draw(result: Result, path: Path) -> None:
    """Write an SVG: attention's TFLOPS over the sequence, and what a ring's steps cost."""
    with saved([result], path, (PAGE_WIDTH, 13)) as figure:
        *grid, rest = figure.subplots(4, 2, height_ratios=(1, 1, 1, 1.5))
        for line, head_dim in zip(grid, (64, 128, 256), strict=True):
            for axes, causal in zip(line, (False, True), strict=True):
                _tflops(axes, result, "forward", head_dim, causal)
        # All of these panels name the same.
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        _ring_tax(rest[0], result)
        _error(rest[1], result)
        figure.suptitle(f"{result['card']}, bf16")


def draw_backward(result: Result, path: Path) -> None:
    """Write an SVG: the TFLOPS of gradients over the sequence."""
    with saved([result], path, (PAGE_WIDTH, 10)) as figure:
        grid = figure.subplots(3, 2)
        for line, head_dim in zip(grid, (64, 128, 256), strict=True):
            for axes, causal in zip(line, (False, True), strict=True):
                _tflops(axes, result, "backward", head_dim, causal)
        handles = {}
        for axes in grid.flat:
            handles |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
        figure.suptitle(f"{result['card']}, bf16: gradients")


def _tflops(
    axes: Any, result: Result, direction: str, head_dim: int, causal: bool
) -> None:
    """TFLOPS of one call at batch x sequence = 16384 and heads x head_dim = 2048, as sustained."""
    lines: dict[str, dict[int, float]] = {}
    for row in result["rows"]:
        p = row["params"]
        if row["name"] != direction or p["family"] != "sm90a" or p["dtype"] != "bf16":
            continue
        shape = (p["head_dim"], p["causal"], p["heads"] * head_dim, p["kv_heads"] * head_dim)
        if shape != (head_dim, causal, 2048, 2048) or p["batch"] * p["query_len"] != _TOKENS:
            continue
        figures = row.get("sustained", row)
        if p.get("guarantee") == "deterministic":
            times = {"sm90a, deterministic": figures["ours"]}
        else:
            times = {"sm90a": figures["ours"]} | {
                name: ms for name, ms in figures["peers"].items() if name in _NAMES
            }
        for name, ms in times.items():
            lines.setdefault(name, {})[p["query_len"]] = tflops(row, ms)
    for name, points in lines.items():
        lengths = sorted(points)
        rates = [points[length] for length in lengths]
        style = {"color": _COLORS[name], "marker": "o", "label": _NAMES.get(name, name)}
        axes.plot(lengths, rates, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length / 1024:g}k" for length in lengths])
    axes.set_title(f"D {head_dim}, {'causal' if causal else 'no mask'}: TFLOPS by length")
    axes.set_ylim(0, 850)
    axes.grid(alpha=0.3)


def _ring_tax(axes: Any, result: Result) -> None:
    """Eight steps of one rank over one call on all keys (ours or cuDNN's, the faster)."""
    points = {}
    for row in result["rows"]:
        p = row["params"]
        if row["name"] != "ring_tax" or p["causal"] or p["dtype"] != "bf16":
            continue
        if (p["family"], p["head_dim"], p["ranks"]) == ("sm90a", 128, 8):
            points[p["chunk"]] = row["ours"] / row["peers"]["one_call"]
    chunks = sorted(points)
    axes.plot(chunks, [points[chunk] for chunk in chunks], marker="o", color=_COLORS["sm90a"])
    axes.set_xscale("log", base=2)
    axes.set_xticks(chunks, [f"{chunk / 1024:g}k" for chunk in chunks])
    axes.set_title("D 128: time of 8 steps / one call, by chunk")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.grid(alpha=0.3)


def _error(axes: Any, result: Result) -> None:
    """Error of rings beside that of cuDNN's single call."""
    bars = {}
    for row in result["rows"]:
        p = row["params"]
        if row["name"] == "error" and p["dtype"] == "bf16" and "cudnn" in row["peers"]:
            label = f"{p['family']} P {p['ranks']} {p['distribution']}"
            bars[label] = row["ours"] / row["peers"]["cudnn"]
    axes.barh(list(bars), list(bars.values()), color="tab:purple")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=9)
    axes.set_title("rms error / cuDNN's single call")
