"""What `baracuda-kernels predict` says of the rings in an evidence file, beside what they took.

The model gets its rates from the same file: TFLOPS from single calls, the state's cost from rings
without a mask. So it is the causal rings, their layouts and whole local rings that test it; rings
without a mask of `ring_tax` only show how well the state's cost was fitted, and are left out.
Everything ran on one GPU: no exchange is in any of it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from baracuda_kernels import predict
from benchmarks import RING_HEAD_DIM, RING_HEADS
from benchmarks.rows import Result, Row


class Comparison(NamedTuple):
    """One figure of a ring: milliseconds of all its ranks' steps, or a ratio of `balance`."""

    family: str
    dtype: str
    head_dim: int
    layout: str
    ranks: int
    chunk: int
    what: str
    measured: float
    predicted: float


def comparisons(evidence: Result) -> list[Comparison]:
    """Every comparison that the rows of an evidence file allow, in the file's order."""
    return [one for row in evidence["rows"] if (one := _comparison(evidence, row))]


def _comparison(evidence: Result, row: Row) -> Comparison | None:
    p, kind, measured = row["params"], row["name"], row["ours"]
    if kind == "ring_tax" and p["causal"]:
        what, layout = "ms, causal", "zigzag"
    elif kind == "overlap" and p["transport"] == "local":
        what, layout, measured = "ms, no mask", "contiguous", row["peers"]["compute"]
    elif kind == "balance":
        what, layout = p["what"], p["layout"]
    else:
        return None
    # What a row does not say is that of all its kind.
    ring: dict[str, Any] = {"heads": RING_HEADS, "head_dim": RING_HEAD_DIM, "dtype": "bf16"} | p
    problem = predict.RingProblem(
        seq=p["ranks"] * p["chunk"], ranks=p["ranks"], heads=ring["heads"],
        head_dim=ring["head_dim"], dtype=ring["dtype"], causal=kind != "overlap",
    )  # fmt: skip
    rates = predict.measured_rates(evidence, p["family"], problem.dtype, problem.head_dim)
    machine = predict.Machine(rates=rates, link_gbps=math.inf, latency_us=0.0, sm_margin=0)
    predicted = float(predict.compute_seconds(problem, machine, layout).sum())
    if kind != "balance":
        predicted *= 1e3
    else:
        forecast = predict.forecast(problem, machine, layout)
        predicted = forecast.balance if what == "slowest rank" else predicted / forecast.one_gpu
    return Comparison(
        p["family"], problem.dtype, problem.head_dim, layout, problem.ranks, problem.chunk, what,
        measured, predicted,
    )  # fmt: skip
