"""What `baracuda-kernels predict` says of the rings in an evidence file, beside what they took.

The model gets its rates from the same file. The rings without a mask of `ring_tax` only show how
well the state's cost was fitted, and are left out.
"""

from __future__ import annotations

import math

from baracuda_kernels import predict
from benchmarks import RING_HEAD_DIM, RING_HEADS
from benchmarks.rows import Result, Row


def comparisons(evidence: Result) -> list[Row]:
    """The rows of an evidence file that the model has a figure for, which is their one peer:
    milliseconds of all ranks' steps of a ring, or a ratio of `balance`."""
    return [one for row in evidence["rows"] if (one := _compared(evidence, row))]


def _compared(evidence: Result, row: Row) -> Row | None:
    # What a row does not say is that of all its kind.
    p = {"heads": RING_HEADS, "head_dim": RING_HEAD_DIM, "dtype": "bf16", **row["params"]}
    kind, measured = row["name"], row["ours"]
    if kind == "ring_tax" and p["causal"]:
        p |= {"what": "ms, causal", "layout": "zigzag"}
    elif kind == "overlap" and p["transport"] == "local":
        p |= {"what": "ms, no mask", "layout": "contiguous"}
        measured = row["peers"]["compute"]
    elif kind != "balance":
        return None
    problem = predict.RingProblem(
        seq=p["ranks"] * p["chunk"], ranks=p["ranks"], heads=p["heads"],
        head_dim=p["head_dim"], dtype=p["dtype"], causal=kind != "overlap",
    )  # fmt: skip
    rates = predict.measured_rates(evidence, p["family"], problem.dtype, problem.head_dim)
    machine = predict.Machine(rates=rates, link_gbps=math.inf, latency_us=0.0, sm_margin=0)
    on_paper = 1e3 * float(predict.compute_seconds(problem, machine, p["layout"]).sum())
    if kind == "balance":
        forecast = predict.forecast(problem, machine, p["layout"])
        slowest = p["what"] == "slowest rank"
        on_paper = forecast.balance if slowest else on_paper / 1e3 / forecast.one_gpu
    return {**row, "params": p, "ours": measured, "peers": {"on_paper": on_paper}}
