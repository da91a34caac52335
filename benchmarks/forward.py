"""`forward` rows: one attention call of each kernel family beside cuDNN, FlashAttention-2 and -3.

In bursts, and those of sm90a in sustained windows too."""

from __future__ import annotations

from typing import Any

import torch
from tests.helpers.rings import preference

import baracuda_kernels as bk
from baracuda_kernels.testing import torch_qkv
from benchmarks.peers import available, forward_calls
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
    ("sm90a", "f16", 64, 2, 32, 32, 8192),
    ("sm90a", "f16", 256, 2, 8, 8, 8192),
    ("sm90a", "bf16", 128, 2, 32, 8, 8192),
    *[("sm90a", "bf16", 128, b, 16, 16, s) for b, s in ((32, 512), (16, 1000), (4, 4097))],
    *[("sm80", "bf16", d, 1, h, h, 8192) for d, h in ((64, 32), (96, 16), (128, 16), (192, 8))],
    ("sm80", "bf16", 256, 1, 8, 8, 8192),
    ("sm80", "f16", 64, 1, 32, 32, 8192),
    ("sm80", "f16", 128, 1, 16, 16, 8192),
    ("sm80", "bf16", 128, 8, 16, 16, 1024),
    ("sm80", "bf16", 128, 1, 32, 8, 8192),
    ("sm80", "bf16", 128, 1, 8, 8, 32768),
    ("simt", "f32", 64, 1, 8, 8, 4096),
    ("simt", "f32", 128, 1, 8, 8, 4096),
    ("simt", "f64", 128, 1, 4, 4, 2048),
    ("simt", "bf16", 128, 1, 8, 8, 4096),
]


def rows() -> list[dict[str, Any]]:
    """All `forward` rows, causal and not."""
    return [_row(*problem, causal) for problem in available(PROBLEMS) for causal in (False, True)]


def _row(
    family: str,
    dtype: str,
    head_dim: int,
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    causal: bool,
) -> dict[str, Any]:
    shape = {
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "query_len": length,
        "key_len": length,
        "head_dim": head_dim,
    }
    stream = bk.Stream(torch.cuda.current_stream())
    desc = bk.FlashSdpaDescriptor(
        batch,
        heads,
        length,
        length,
        head_dim,
        is_causal=causal,
        element=bk.ElementKind.parse(dtype),
        num_kv_heads=kv_heads,
    )
    plan = bk.FlashSdpaPlan.select(stream, desc, preference(family, dtype))

    def make(seed: int) -> tuple[Any, Any, Any, Any]:
        q, k, v = torch_qkv("normal", dtype, seed, **shape)
        y = torch.empty_like(q)
        return q, k, v, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y)

    itemsize = bk.ElementKind.parse(dtype).itemsize
    one = batch * length * head_dim * (2 * heads + 2 * kv_heads) * itemsize
    sets = input_sets(make, one)
    calls = {"ours": lambda i: plan.run(stream, sets[i % len(sets)][3])}
    calls |= forward_calls(sets, causal)
    measure = sustained if family == "sm90a" else in_bursts
    params = {"family": family, "dtype": dtype, **shape, "causal": causal}
    return {"name": "forward", "params": params, "unit": "ms", **measure(calls)["ours"]}
