"""`backward` rows: the gradients of one attention call beside cuDNN, FlashAttention-2 and -3.

A call is the whole backward pass, with all of its kernels; no forward is in it. In bursts, and
those of the tensor-core families in sustained windows too.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.calls import HOPPER, Call, scratch
from benchmarks.peers import measurements, peer_calls
from benchmarks.rows import Measurement, Row, row
from benchmarks.timing import all_of, in_windows, input_sets, stream

PROBLEMS = HOPPER[:9]
MORE = [
    *HOPPER[9:],
    *[Call("sm80", 8192, "bf16", d, 2048 // d, batch=2) for d in (64, 128, 256)],
    Call("sm80", 8192, "f16", batch=2),
    Call("simt", 4096, "f32", 128, 8),
    Call("simt", 2048, "f64", 128, 4),
]


def rows() -> list[Measurement]:
    """`backward` rows of `PROBLEMS`, causal and not; a problem without such a kernel has none."""
    return measurements(_of_call, PROBLEMS)


def more_rows() -> list[Measurement]:
    """Those of `MORE`. All together would take more than a part's 8 minutes."""
    return measurements(_of_call, MORE)


def _of_call(x: Call) -> list[Row]:
    torch.cuda.empty_cache()
    plans = _plans(x)
    if not plans:
        return []

    sets = input_sets(x.saved, x.nbytes(4))
    outputs = [{f"d{name}": torch.empty_like(one[name]) for name in "qkv"} for one in sets]
    calls: dict[str, Any] = {
        name: all_of(
            partial(plan.run, stream(), bk.FlashSdpaBackwardArgs(
                **one, **written, scratch=scratch(plan.scratch_bytes)
            ))
            for one, written in zip(sets, outputs, strict=True)
        )
        for name, plan in plans.items()
    }  # fmt: skip
    operands = [(one["q"], one["k"], one["v"], one["dy"]) for one in sets]
    calls |= peer_calls(operands, x.causal)
    figures = in_windows(calls, len(sets), list(plans), sustained=x.family != "simt")
    return [row("backward", {**x.params(), "guarantee": n}, **figures[n]) for n in plans]


def _plans(x: Call) -> dict[str, Any]:
    """The family's fastest kernel for these gradients, and its deterministic one if that differs."""
    plans: dict[str, Any] = {}
    variants = {"fast": "", "deterministic": "-deterministic"}
    for name, variant in variants.items() if x.family != "simt" else [("fast", "")]:
        with contextlib.suppress(bk.UnsupportedError):
            plan = x.backward_plan(variant)
            known = [other.sku for other in plans.values()]
            if plan.family.removesuffix("-deterministic") == x.family and plan.sku not in known:
                plans[name] = plan
    return plans
