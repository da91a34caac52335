"""`backward` rows: the gradients of one attention call beside cuDNN, FlashAttention-2 and -3.

A call is the whole backward pass, with all of its kernels; no forward is in it. In bursts, and
those of the tensor-core families in sustained windows too.
"""

from __future__ import annotations

from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.one_call import Call
from benchmarks.peers import available, backward_calls
from benchmarks.rows import Row, row
from benchmarks.timing import in_bursts, input_sets, sustained

# (family, dtype, head_dim, batch, heads, kv_heads, query_len = key_len)
PROBLEMS = [
    # B * S = 16384, H * D = 2048
    *[
        ("sm90a", "bf16", d, 16384 // s, 2048 // d, 2048 // d, s)
        for d in (128, 64, 256)
        for s in (2048, 8192, 16384)
    ],
    ("sm90a", "f16", 128, 2, 16, 16, 8192),
    ("sm90a", "bf16", 128, 2, 32, 8, 8192),
    *[("sm90a", "bf16", 128, b, 16, 16, s) for b, s in ((32, 512), (16, 1000), (4, 4097))],
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
            found += _rows(Call(*problem), causal)
            torch.cuda.empty_cache()
    return found


def _rows(x: Call, causal: bool) -> list[Row]:
    stream = bk.Stream(torch.cuda.current_stream())
    plans = _plans(x, x.descriptor(causal), stream)
    if not plans:
        return []
    forward = bk.FlashSdpaPlan.select(stream, x.descriptor(causal), x.preference())

    def make(seed: int) -> tuple[Any, ...]:
        q, k, v = x.qkv(seed)
        dy = x.qkv(seed + 1000)[0]
        y, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=_wider(q), device=q.device)
        forward.run(stream, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse))
        operands = {"q": q, "k": k, "v": v, "y": y, "dy": dy, "lse": lse}
        outputs = {f"d{name}": torch.empty_like(operands[name]) for name in "qkv"}
        args = {
            name: bk.FlashSdpaBackwardArgs(
                **operands, **outputs,
                scratch=torch.empty(plan.scratch_bytes, dtype=torch.uint8, device=q.device),
            )
            for name, plan in plans.items()
        }  # fmt: skip
        return q, k, v, dy, args

    sets = input_sets(make, x.nbytes(4, 4))
    calls = {
        name: lambda i, name=name, plan=plan: plan.run(
            torch.cuda.current_stream(), sets[i % len(sets)][4][name]
        )
        for name, plan in plans.items()
    }
    calls |= backward_calls(sets, causal)
    measure = in_bursts if x.family == "simt" else sustained
    figures = measure(calls, list(plans))
    params = x.params(causal)
    return [row("backward", {**params, "guarantee": name}, **figures[name]) for name in plans]


def _plans(x: Call, desc: Any, stream: Any) -> dict[str, Any]:
    """The family's fastest kernel for these gradients, and its deterministic one if that differs."""
    plans: dict[str, Any] = {}
    for name, deterministic in (("fast", None), ("deterministic", True)):
        try:
            plan = bk.FlashSdpaBackwardPlan.select(desc, stream, x.preference(deterministic))
        except bk.UnsupportedError:
            continue
        known = [other.sku for other in plans.values()]
        if plan.family.removesuffix("-deterministic") == x.family and plan.sku not in known:
            plans[name] = plan
    return plans


def _wider(q: Any) -> Any:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
