"""`forward` rows: one attention call of each kernel family beside cuDNN, FlashAttention-2 and -3.

In bursts, and those of sm90a in sustained windows too."""

from __future__ import annotations

from functools import partial

import torch

import baracuda_kernels as bk
from benchmarks.calls import HOPPER, Call
from benchmarks.peers import measurements, peer_calls
from benchmarks.rows import Measurement, Row, row
from benchmarks.timing import all_of, in_windows, input_sets, stream

PROBLEMS = [*HOPPER, Call("sm90a", 32768, heads=32, kv_heads=8)]
MORE = [
    Call("sm90a", 8192, "f16", 64, 32, batch=2),
    Call("sm90a", 8192, "f16", 256, 8, batch=2),
    *[Call("sm80", 8192, "bf16", d, h) for d, h in ((64, 32), (96, 16), (128, 16), (192, 8))],
    Call("sm80", 8192, "bf16", 256, 8),
    Call("sm80", 8192, "f16", 64, 32),
    Call("sm80", 8192, "f16"),
    Call("sm80", 1024, batch=8),
    Call("sm80", 8192, heads=32, kv_heads=8),
    Call("sm80", 32768, heads=8),
    Call("simt", 4096, "f32", 64, 8),
    Call("simt", 4096, "f32", 128, 8),
    Call("simt", 2048, "f64", 128, 4),
    Call("simt", 4096, "bf16", 128, 8),
]


def rows() -> list[Measurement]:
    """`forward` rows of `PROBLEMS`, causal and not."""
    return measurements(_of_call, PROBLEMS)


def more_rows() -> list[Measurement]:
    """Those of `MORE`. All together would take more than a part's 8 minutes."""
    return measurements(_of_call, MORE)


def _of_call(x: Call) -> list[Row]:
    plan, on = x.plan(), stream()
    sets = input_sets(x.qkv, x.nbytes(2))
    args = [bk.FlashSdpaArgs(q=q, k=k, v=v, y=torch.empty_like(q)) for q, k, v in sets]
    calls = {"ours": all_of(partial(plan.run, on, one) for one in args)}
    calls |= peer_calls(sets, x.causal)
    figures = in_windows(calls, len(sets), sustained=x.family == "sm90a")
    return [row("forward", x.params(), **figures["ours"])]
