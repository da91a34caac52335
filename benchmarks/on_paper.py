"""What `baracuda-kernels predict` says of the rings in an evidence file, beside what they took.

The model gets its rates from the same file: TFLOPS from single calls, the state's cost from rings
without a mask. So it is the causal rings, their layouts and whole local rings that test it; rings
without a mask of `ring_tax` only show how well the state's cost was fitted, and are left out.
Everything ran on one GPU: no exchange is in any of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from baracuda_kernels import predict
from benchmarks import RING_HEAD_DIM, RING_HEADS
from benchmarks.rows import Result, Row


class Comparison(NamedTuple):
    """One figure of a ring: milliseconds of all its ranks' steps, or a ratio of `balance`."""

    what: str
    family: str
    dtype: str
    head_dim: int
    layout: str
    ranks: int
    chunk: int
    measured: float
    predicted: float


def comparisons(evidence: Result) -> list[Comparison]:
    """Every comparison that the rows of an evidence file allow, in the file's order."""
    found: list[Comparison] = []
    for row in evidence["rows"]:
        compare = _COMPARED.get(row["name"])
        if compare is not None:
            found.extend(compare(evidence, row))
    return found


def _ring_tax(evidence: Result, row: Row) -> Iterator[Comparison]:
    p = row["params"]
    if p["causal"]:
        problem = _problem(p, p["heads"], p["head_dim"], p["dtype"], causal=True)
        yield _milliseconds(evidence, p["family"], problem, "zigzag", row["ours"])


def _overlap(evidence: Result, row: Row) -> Iterator[Comparison]:
    p = row["params"]
    if p["transport"] == "local":
        problem = _problem(p, RING_HEADS, RING_HEAD_DIM, "bf16", causal=False)
        compute = row["peers"]["compute"]
        yield _milliseconds(evidence, p["family"], problem, "contiguous", compute)


def _balance(evidence: Result, row: Row) -> Iterator[Comparison]:
    p = row["params"]
    problem = _problem(p, RING_HEADS, RING_HEAD_DIM, "bf16", causal=True)
    machine = _machine(evidence, p["family"], problem)
    forecast = predict.forecast(problem, machine, p["layout"])
    predicted = forecast.balance
    if p["what"] == "summed work":
        seconds = predict.compute_seconds(problem, machine, p["layout"])
        predicted = float(seconds.sum()) / forecast.one_gpu
    yield Comparison(
        p["what"], p["family"], problem.dtype, problem.head_dim, p["layout"], problem.ranks,
        problem.chunk, row["ours"], predicted,
    )  # fmt: skip


_COMPARED = {"ring_tax": _ring_tax, "overlap": _overlap, "balance": _balance}


def _problem(
    p: dict[str, Any], heads: int, head_dim: int, dtype: str, *, causal: bool
) -> predict.RingProblem:
    return predict.RingProblem(
        seq=p["ranks"] * p["chunk"], ranks=p["ranks"], heads=heads, head_dim=head_dim, dtype=dtype,
        causal=causal,
    )  # fmt: skip


def _machine(
    evidence: Result, family: str, problem: predict.RingProblem
) -> predict.Machine:
    rates = predict.measured_rates(evidence, family, problem.dtype, problem.head_dim)
    return predict.Machine(rates=rates, link_gbps=math.inf, latency_us=0.0, sm_margin=0)


def _milliseconds(
    evidence: Result, family: str, problem: predict.RingProblem, layout: str,
    measured: float,
) -> Comparison:  # fmt: skip
    machine = _machine(evidence, family, problem)
    seconds = predict.compute_seconds(problem, machine, layout)
    what = f"ms, {'causal' if problem.causal else 'no mask'}"
    return Comparison(
        what, family, problem.dtype, problem.head_dim, layout, problem.ranks, problem.chunk,
        measured, float(seconds.sum()) * 1e3,
    )  # fmt: skip
