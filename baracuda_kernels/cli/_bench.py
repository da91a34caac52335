"""``bench ring``: when the steps of a local ring compute, exchange, and wait for the exchange."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from baracuda_kernels.cli._console import (
    ProgressBar,
    check_fits_memory,
    check_target,
    json_option,
    json_text,
    out_console,
    print_json,
    written,
)
from baracuda_kernels.cli._plot import check_plot
from baracuda_kernels.cli._plot_ring import draw_plot
from baracuda_kernels.cli._run import LAYOUTS, ranks_type
from baracuda_kernels.cli._sample import DTYPES, check_sample, dtype_choice
from baracuda_kernels.cli._trace import write_trace

# What a step of a rank takes as Python's objects, about: its result as JSON, and its times and
# spans in one run. Ranks have as many steps as there are ranks.
_STEP_BYTES, _RUN_BYTES = 5000, 800


@click.group(short_help="Time the steps of a ring on this machine.")
def bench() -> None:
    """Measure on this machine."""


@bench.command(short_help="Time the steps of a ring of virtual ranks.")
@click.option("--ranks", type=ranks_type, default=8, show_default=True, help="Virtual ranks, P.")
@click.option("--chunk", type=click.IntRange(1), default=1024, show_default=True,
              help="Rows of each rank.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True,
              help="Sequences, B.")  # fmt: skip
@click.option("--heads", type=click.IntRange(1), default=16, show_default=True,
              help="Query heads, H.")  # fmt: skip
@click.option(
    "--kv-heads", type=click.IntRange(1), help="Heads of K and V, Hkv; divides H. [default: H]"
)
@click.option("--head-dim", type=click.IntRange(1), default=128, show_default=True,
              help="Elements of a head, D.")  # fmt: skip
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True,
              help="Element type of q, k, v and y.")  # fmt: skip
@click.option("--causal", is_flag=True, help="Row i sees the keys up to i.")
@click.option("--layout", type=click.Choice(LAYOUTS), default="zigzag", show_default=True,
              help="How rows are dealt to ranks.")  # fmt: skip
@click.option("--device", default="cuda", show_default=True, help="host (or cpu), cuda or cuda:N.")
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, help="Timed runs.")
@click.option("--plot", type=click.Path(path_type=Path), help="Picture: .png, .svg or .pdf.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="Lanes of one run for Perfetto or chrome://tracing: .json.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON there.")
@json_option
def ring(
    ranks: int,
    chunk: int,
    batch: int,
    heads: int,
    kv_heads: int | None,
    head_dim: int,
    dtype: str,
    causal: bool,
    layout: str,
    device: str,
    runs: int,
    plot: Path | None,
    trace: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Time every step of every rank of a ring of virtual ranks in this process.

    The defaults suit a GPU. On the CPU they take minutes; try --device host --chunk 256 --runs 5.

    The ranks take turns on one device, so the total is the work of all ranks. The exchanges are
    copies that run at the same time as kernels. Times are medians over the runs, after two that are
    not counted. Columns: compute is the time of a step's kernels, exchange that of its copies,
    exposed the time that kernels waited for copies. Each is the slowest rank's; mean is the average
    compute of the ranks. balance is the compute of the slowest ranks over the mean, 1 if the work
    is spread evenly.

    --plot and --trace show one run, that of median length. Each rank has a lane for compute, one
    for exchanges, and one for the waits of kernels for exchanges.
    """
    from baracuda_kernels._prepared_ring import PreparedRing

    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise click.BadParameter(
            f"got {kv_heads}, must divide the {heads} heads", param_hint="kv-heads"
        )
    if plot is not None:
        check_plot(plot)
    for target in (trace, output):
        if target is not None:
            check_target(target, (".json",))
    if trace is not None and trace == output:
        raise click.BadParameter(f"got {trace}, must be another file than -o's", param_hint="trace")
    check_sample(batch, heads + 2 * kv_heads, ranks * chunk, head_dim, dtype)
    check_fits_memory("the times of all steps", ranks**2 * (_STEP_BYTES + runs * _RUN_BYTES))
    random = np.random.default_rng(0)
    q, k, v = (
        random.standard_normal((batch, h, ranks * chunk, head_dim), np.float32).astype(
            DTYPES[dtype]
        )
        for h in (heads, kv_heads, kv_heads)
    )
    prepared = PreparedRing(
        q, k, v, ranks, is_causal=causal, scale=None, sequence_layout=layout, device=device,
    )  # fmt: skip
    result = {
        "ranks": ranks, "chunk": chunk, "batch": batch, "heads": heads, "kv_heads": kv_heads,
        "head_dim": head_dim, "dtype": dtype, "causal": causal, "layout": layout, "device": device,
        "family": prepared.plan.family, "runs": runs, **_measure(prepared, ranks, runs, as_json),
    }  # fmt: skip
    if output is not None:
        with written(output) as file:
            file.write(json_text(result).encode() + b"\n")
    if plot is not None:
        draw_plot(plot, result)
    if trace is not None:
        write_trace(trace, result)
    if as_json:
        print_json(result)
    else:
        _print_text(result)


def _measure(prepared: Any, ranks: int, runs: int, as_json: bool) -> dict[str, Any]:
    from baracuda_kernels import RingTimeline

    timelines = [RingTimeline() for _ in range(ranks)]
    for _ in range(2):
        prepared.run(timelines)
    samples = []  # [run][rank] -> steps
    lanes = []  # [run] -> spans
    with ProgressBar(f"{ranks} ranks, runs", as_json) as bar:
        for number in range(runs):
            prepared.run(timelines)
            samples.append([timeline.steps for timeline in timelines])
            lanes.append(_lanes(timelines))
            bar.update(number + 1, runs)

    def median(name: str, rank: int, step: int) -> float:
        return float(statistics.median(getattr(run[rank][step], name) for run in samples))

    steps: list[dict[str, Any]] = [
        {
            "step": step,
            **{name: [median(name, rank, step) for rank in range(ranks)]
               for name in ("compute", "exchange", "exposed")},
        }
        for step in range(ranks)
    ]  # fmt: skip
    compute = [step["compute"] for step in steps]
    whole = sum(map(sum, compute))
    return {
        "unit": "ms",
        "steps": steps,
        "compute": whole,
        "exposed": sum(sum(step["exposed"]) for step in steps),
        # Compute time if every step lasts as long as its slowest rank, over that of evenly spread
        # work.
        "balance": sum(map(max, compute)) / (whole / ranks),
        "lanes": sorted(lanes, key=_length)[len(lanes) // 2],
    }


def _lanes(timelines: list[Any]) -> list[dict[str, Any]]:
    """The spans of all ranks in the last run, in milliseconds after the first span."""
    spans = [
        {"rank": timeline.rank, **span._asdict()}
        for timeline in timelines
        for span in timeline.spans(timelines[0])
    ]
    start = min(span["begin"] for span in spans)
    for span in spans:
        span["begin"] -= start
        span["end"] -= start
    return spans


def _length(lanes: list[dict[str, Any]]) -> float:
    return max(float(span["end"]) for span in lanes)


def _print_text(result: dict[str, Any]) -> None:
    mask = "causal" if result["causal"] else "not causal"
    click.echo(
        f"{result['ranks']} ranks of {result['chunk']} rows, B {result['batch']}, "
        f"H {result['heads']}/{result['kv_heads']}, D {result['head_dim']}, {result['dtype']}, "
        f"{mask}, {result['layout']}; kernel {result['family']} on {result['device']}"
    )
    click.echo(
        f"ms, medians of {result['runs']} runs: of the slowest rank; mean: compute of all ranks"
    )
    table = Table()
    for head in ("step", "compute", "mean", "exchange", "exposed"):
        table.add_column(head, justify="right")
    for step in result["steps"]:
        figures = (
            max(step["compute"]),
            statistics.fmean(step["compute"]),
            max(step["exchange"]),
            max(step["exposed"]),
        )
        table.add_row(str(step["step"]), *(f"{x:.3f}" for x in figures))
    out_console().print(table)
    click.echo(
        f"all ranks: compute {result['compute']:.3f} ms, exposed communication "
        f"{result['exposed']:.3f} ms\n"
        f"balance {result['balance']:.2f} (1: each step's work is spread evenly over the ranks)"
    )
