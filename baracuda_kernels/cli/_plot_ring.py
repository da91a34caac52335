"""The picture of ``bench ring --plot``: the lanes of every rank, and each step's times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baracuda_kernels.cli._plot import figure_module, save
from baracuda_kernels.cli._trace import LANES

_COLORS = {"compute": "tab:blue", "exchange": "tab:green", "exposed": "tab:red"}
_LANE = 0.26  # height of a lane, in units of a rank's height


def draw_plot(path: Path, result: dict[str, Any]) -> None:
    """Draw the result of ``bench ring``.

    Raises
    ------
    UnsupportedError
        If matplotlib is not installed.
    FileProblemError
        If the file cannot be written.
    """
    ranks = result["ranks"]
    lanes_height = min(1.5 + 0.45 * ranks, 20.0)
    figure = figure_module().Figure(figsize=(9, lanes_height + 3), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(lanes_height, 3))
    _draw_lanes(figure.add_subplot(grid[0, :]), result)
    compute, communication = (figure.add_subplot(grid[1, column]) for column in (0, 1))
    steps = [step["step"] for step in result["steps"]]
    for rank in range(ranks):
        times = [step["compute"][rank] for step in result["steps"]]
        compute.plot(steps, times, marker="o", markersize=3, alpha=0.7, label=f"rank {rank}")
    if ranks <= 8:
        compute.legend(fontsize="small", ncols=2)
    for name in LANES[1:]:
        slowest = [max(step[name]) for step in result["steps"]]
        communication.plot(
            steps, slowest, marker="s", color=_COLORS[name], label=f"{name}, slowest rank"
        )
    communication.legend(fontsize="small")
    medians = f"medians of {result['runs']} runs"
    for axes, title in (
        (compute, f"compute, ms ({medians})"),
        (communication, f"communication, ms ({medians})"),
    ):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("step")
        if len(steps) <= 16:
            axes.set_xticks(steps)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    mask = "causal" if result["causal"] else "not causal"
    figure.suptitle(
        f"{ranks} ranks of {result['chunk']} rows, {mask}, {result['layout']}, "
        f"H {result['heads']}/{result['kv_heads']}, D {result['head_dim']}, {result['dtype']}: "
        f"kernel {result['family']} on {result['device']}",
        fontsize="medium",
    )
    save(figure, path)


def _draw_lanes(axes: Any, result: dict[str, Any]) -> None:
    """Three lanes for each rank, over the time of one run."""
    ranks = result["ranks"]
    for lane, name in enumerate(LANES):
        spans = [span for span in result["lanes"] if span["name"] == name]
        axes.barh(
            [span["rank"] + (lane - 1) * _LANE for span in spans],
            [span["end"] - span["begin"] for span in spans],
            left=[span["begin"] for span in spans],
            height=_LANE * 0.92, color=_COLORS[name], edgecolor="white", linewidth=0.4, label=name,
        )  # fmt: skip
    if ranks <= 16:
        for span in result["lanes"]:
            # Only in spans that have room for the number.
            if span["name"] == "compute" and span["end"] - span["begin"] > 0.02 * _end(result):
                middle = (span["begin"] + span["end"]) / 2
                axes.text(middle, span["rank"] - _LANE, str(span["step"]), ha="center",
                          va="center_baseline", color="white", fontsize=7)  # fmt: skip
    shown = range(0, ranks, -(-ranks // 32))
    axes.set_yticks(list(shown), [f"rank {rank}" for rank in shown])
    axes.set_ylim(ranks - 0.5, -0.5)
    axes.set_xlim(0, _end(result))
    axes.set_xlabel("ms; the numbers are steps")
    axes.set_title("one run, the median one", fontsize="medium", loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize="small")
    axes.grid(alpha=0.3, axis="x")


def _end(result: dict[str, Any]) -> float:
    return max(float(span["end"]) for span in result["lanes"])
