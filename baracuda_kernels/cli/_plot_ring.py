"""The picture of ``bench ring --plot``: each step's compute of every rank, beside its exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baracuda_kernels.cli._plot import figure_module, save


def draw_plot(path: Path, result: dict[str, Any]) -> None:
    """Draw what ``bench ring`` measured.

    Raises
    ------
    UnsupportedError
        If matplotlib is not installed.
    FileProblemError
        If the file cannot be written.
    """
    figure = figure_module().Figure(figsize=(9, 4), layout="constrained")
    compute, communication = figure.subplots(1, 2)
    steps = [step["step"] for step in result["steps"]]
    for rank in range(result["ranks"]):
        times = [step["compute"][rank] for step in result["steps"]]
        compute.plot(steps, times, marker="o", markersize=3, alpha=0.7, label=f"rank {rank}")
    if result["ranks"] <= 8:
        compute.legend(fontsize="small", ncols=2)
    for name, color in (("exchange", "tab:blue"), ("exposed", "tab:red")):
        slowest = [max(step[name]) for step in result["steps"]]
        communication.plot(steps, slowest, marker="s", color=color, label=f"{name}, slowest rank")
    communication.legend(fontsize="small")
    for axes, title in ((compute, "compute, ms"), (communication, "communication, ms")):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_xticks(steps)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    mask = "causal" if result["causal"] else "not causal"
    figure.suptitle(
        f"{result['ranks']} ranks of {result['chunk']} rows, {mask}, {result['layout']}, "
        f"H {result['heads']}/{result['kv_heads']}, D {result['head_dim']}, {result['dtype']}: "
        f"{result['family']} on {result['device']}"
    )
    save(figure, path)
