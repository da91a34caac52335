"""`forward` rows: one attention call of each kernel family beside cuDNN, FlashAttention-2 and -3.

In bursts, and those of sm90a in sustained windows too."""

from __future__ import annotations

from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.calls import HOPPER, Call
from benchmarks.peers import available, forward_calls
from benchmarks.rows import Row, row
from benchmarks.timing import in_windows, input_sets, stream

# (family, dtype, head_dim, batch, heads, kv_heads, query_len = key_len)
PROBLEMS = [
    *[("sm90a", *problem) for problem in HOPPER],
    ("sm90a", "f16", 64, 2, 32, 32, 8192),
    ("sm90a", "f16", 256, 2, 8, 8, 8192),
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


def rows() -> list[Row]:
    """All `forward` rows, causal and not."""
    return [_row(Call(*x, causal)) for x in available(PROBLEMS) for causal in (False, True)]


def _row(x: Call) -> Row:
    plan, on = x.plan(), stream()

    def make(seed: int) -> tuple[Any, Any, Any, Any]:
        q, k, v = x.qkv(seed)
        return q, k, v, bk.FlashSdpaArgs(q=q, k=k, v=v, y=torch.empty_like(q))

    sets = input_sets(make, x.nbytes(2))
    calls = {"ours": lambda i: plan.run(on, sets[i % len(sets)][3])}
    calls |= forward_calls(sets, x.causal)
    figures = in_windows(calls, sustained=x.family == "sm90a")
    return row("forward", x.params(), **figures["ours"])
