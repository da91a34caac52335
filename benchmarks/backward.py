"""`backward` rows: the gradients of one attention call beside cuDNN, FlashAttention-2 and -3.

A call is the whole backward pass, with all of its kernels; no forward is in it. In bursts, and
those of the tensor-core families in sustained windows too.
"""

from __future__ import annotations

from typing import Any

import torch
from tests.helpers.rings import preference

import baracuda_kernels as bk
from baracuda_kernels.testing import torch_qkv
from benchmarks.peers import available, backward_calls
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


def rows() -> list[dict[str, Any]]:
    """All `backward` rows, causal and not; a problem without such a kernel has none."""
    found = []
    for problem in available(PROBLEMS):
        for causal in (False, True):
            found += _rows(*problem, causal)
            torch.cuda.empty_cache()
    return found


def _rows(
    family: str, dtype: str, head_dim: int, batch: int, heads: int, kv_heads: int, length: int,
    causal: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    shape = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "query_len": length,
             "key_len": length, "head_dim": head_dim}  # fmt: skip
    desc = bk.FlashSdpaDescriptor(
        batch, heads, length, length, head_dim, is_causal=causal,
        element=bk.ElementKind.parse(dtype), num_kv_heads=kv_heads,
    )  # fmt: skip
    stream = bk.Stream(torch.cuda.current_stream())
    plans = _plans(desc, stream, family, dtype)
    if not plans:
        return []

    def make(seed: int) -> tuple[Any, ...]:
        q, k, v = torch_qkv("normal", dtype, seed, **shape)
        dy = torch_qkv("normal", dtype, seed + 1000, **shape)[0]
        return q, k, v, dy, _ours(desc, stream, family, dtype, plans, (q, k, v, dy))

    one = batch * length * head_dim * (4 * heads + 4 * kv_heads) * desc.element.itemsize
    sets = input_sets(make, one)
    calls = {
        name: lambda i, name=name: sets[i % len(sets)][4][name](torch.cuda.current_stream())
        for name in plans
    }
    calls |= backward_calls(sets, causal)
    params = {"family": family, "dtype": dtype, **shape, "causal": causal}
    measure = in_bursts if family == "simt" else sustained
    figures = measure(calls, list(plans))
    return [
        {"name": "backward", "params": {**params, "guarantee": name}, "unit": "ms", **figures[name]}
        for name in plans
    ]


def _plans(desc: Any, stream: Any, family: str, dtype: str) -> dict[str, Any]:
    """The family's fastest kernel for these gradients, and its deterministic one if that differs."""
    plans: dict[str, Any] = {}
    wanted = preference(family, dtype)
    for name, deterministic in (("fast", None), ("deterministic", True)):
        narrowed = bk.PlanPreference(
            allow_sm90a=wanted.allow_sm90a, math_precision=wanted.math_precision,
            deterministic=deterministic,
        )  # fmt: skip
        try:
            plan = bk.FlashSdpaBackwardPlan.select(desc, stream, narrowed)
        except bk.UnsupportedError:
            continue
        if plan.family.removesuffix("-deterministic") == family and plan.sku not in [other.sku for other in plans.values()]:
            plans[name] = plan
    return plans


def _ours(
    desc: Any, stream: Any, family: str, dtype: str, plans: dict[str, Any], operands: tuple
) -> dict[str, Any]:
    """By guarantee, a call that takes a stream; the outputs are shared."""
    q, k, v, dy = operands
    y, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=_wider(q), device=q.device)
    forward = bk.FlashSdpaPlan.select(desc, stream, preference(family, dtype))
    forward.run(stream, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse))
    outputs = {"dq": torch.empty_like(q), "dk": torch.empty_like(k), "dv": torch.empty_like(v)}
    calls = {}
    for name, plan in plans.items():
        scratch = torch.empty(plan.scratch_bytes, dtype=torch.uint8, device=q.device)
        args = bk.FlashSdpaBackwardArgs(
            q=q, k=k, v=v, y=y, dy=dy, lse=lse, **outputs, scratch=scratch
        )
        calls[name] = lambda stream, plan=plan, args=args: plan.run(stream, args)
    return calls


def _wider(q: Any) -> Any:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
