"""`backward` rows: the gradients of one attention call beside cuDNN, FlashAttention-2 and -3.

A call is the whole backward pass, with all of its kernels; no forward is in it. In bursts, and
those of the tensor-core families in sustained windows too.
"""

from __future__ import annotations

from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.calls import HOPPER, Call, scratch
from benchmarks.peers import available, backward_calls
from benchmarks.rows import Row, row
from benchmarks.timing import in_windows, input_sets

# (family, dtype, head_dim, batch, heads, kv_heads, query_len = key_len)
PROBLEMS = [
    *[("sm90a", *problem) for problem in HOPPER],
    *[("sm80", "bf16", d, 2, 2048 // d, 2048 // d, 8192) for d in (64, 128, 256)],
    ("sm80", "f16", 128, 2, 16, 16, 8192),
    ("simt", "f32", 128, 1, 8, 8, 4096),
    ("simt", "f64", 128, 1, 4, 4, 2048),
]


def rows() -> list[Row]:
    """All `backward` rows, causal and not; a problem without such a kernel has none."""
    found = []
    for problem in available(PROBLEMS):
        for causal in (False, True):
            found += _rows(Call(*problem, causal))
            torch.cuda.empty_cache()
    return found


def _rows(x: Call) -> list[Row]:
    plans = _plans(x)
    if not plans:
        return []

    def make(seed: int) -> tuple[Any, ...]:
        saved = x.saved(seed)
        outputs = {f"d{name}": torch.empty_like(saved[name]) for name in "qkv"}
        args = {
            name: bk.FlashSdpaBackwardArgs(**saved, **outputs, scratch=scratch(plan.scratch_bytes))
            for name, plan in plans.items()
        }
        return *(saved[name] for name in ("q", "k", "v", "dy")), args

    sets = input_sets(make, x.nbytes(4))
    calls = {
        name: lambda i, name=name, plan=plan: plan.run(
            torch.cuda.current_stream(), sets[i % len(sets)][4][name]
        )
        for name, plan in plans.items()
    }
    calls |= backward_calls(sets, x.causal)
    figures = in_windows(calls, list(plans), sustained=x.family != "simt")
    return [row("backward", {**x.params(), "guarantee": n}, **figures[n]) for n in plans]


def _plans(x: Call) -> dict[str, Any]:
    """The family's fastest kernel for these gradients, and its deterministic one if that differs."""
    plans: dict[str, Any] = {}
    for name, deterministic in (("fast", None), ("deterministic", True)):
        try:
            plan = x.backward_plan(deterministic)
        except bk.UnsupportedError:
            continue
        known = [other.sku for other in plans.values()]
        if plan.family.removesuffix("-deterministic") == x.family and plan.sku not in known:
            plans[name] = plan
    return plans
