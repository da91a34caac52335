"""`host_cost` rows: microseconds of the calling thread per call, the GPU's work not counted."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel

import baracuda_kernels as bk
from baracuda_kernels.testing import preference, torch_qkv
from benchmarks.peers import BACKENDS
from benchmarks.rows import Row, row
from tests.helpers import cuda_ring
from tests.helpers.host_time import microseconds
from tests.helpers.loop_cost import time_calls
from tests.helpers.rings import descriptor, rank_arrays, shards_of

_CALLS = 200
_ROUNDS = 15
# Small enough that the GPU keeps up and the launch queue never fills.
_SHAPE = {"heads": 2, "head_dim": 64}
_ROWS = 64


def rows() -> list[Row]:
    """All `host_cost` rows."""
    stream = bk.Stream(torch.cuda.current_stream())
    pref = preference("sm80", "bf16")
    q, k, v = torch_qkv("normal", "bf16", 0, query_len=_ROWS, **_SHAPE)
    y = torch.empty_like(q)
    element = bk.ElementKind.BF16
    desc = bk.FlashSdpaDescriptor(1, 2, _ROWS, _ROWS, 64, element=element)
    sdpa = bk.FlashSdpaPlan.select(stream, desc, pref)
    args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=y)

    def one_call() -> None:
        sdpa.run(stream, args)

    def with_args() -> None:
        sdpa.run(stream, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y))

    def theirs() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)

    found = [
        _row("flash_sdpa.run", 1, one_call, theirs),
        _row("flash_sdpa.run, args made anew", 1, with_args, theirs),
        _row("flash_sdpa.select", 1, lambda: bk.FlashSdpaPlan.select(stream, desc, pref)),
    ]
    for ranks in (1, 2, 4, 8):
        found.append(_row("ring_attention.run_all", ranks, _ring(stream, pref, ranks)))
    found.append(_one_rank(stream, pref, q, k, v))
    return found + [_loop(ranks) for ranks in (2, 8, 64)]


def _one_rank(stream: Any, pref: Any, q: Any, k: Any, v: Any) -> Row:
    """`plan.run` of a NCCL communicator of one, beside the launch of its kernel alone from C."""
    rank = cuda_ring.RankTensors(torch, q, k, v, family="sm80")
    rank.stage()
    params = rank.step()
    params.flags |= 3  # FIRST and LAST
    raw = torch.cuda.current_stream().cuda_stream
    plan = bk.RingAttentionPlan.select(stream, descriptor(q, k, "bf16"), pref)
    arrays = rank_arrays(torch, plan, q, k, v, 1)
    with bk.Communicator.new_single_gpu(0) as comm:
        found = _row("ring_attention.run", 1, lambda: plan.run(stream, comm, arrays.args))
    launches = []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        launches.append(time_calls().launches(params, 2, raw, _CALLS))
    return found | {"peers": {"launch": statistics.median(launches)}}


def _loop(ranks: int) -> Row:
    """A step of one rank in the loop, with streams and a transport that do nothing."""
    samples = [time_calls().loop(ranks, max(4, 20_000 // ranks)) for _ in range(_ROUNDS)]
    params = {"what": "the loop's own part of a step", "ranks": ranks}
    return row("host_cost", params, statistics.median(samples))


def _ring(stream: Any, pref: Any, ranks: int) -> Callable[[], None]:
    q, k, v = torch_qkv("normal", "bf16", 0, query_len=_ROWS * ranks, **_SHAPE)
    shards = shards_of(q, k, v, ranks, "contiguous")
    plan = bk.RingAttentionPlan.select(stream, descriptor(*shards[0][:2], "bf16"), pref)
    arrays = [rank_arrays(torch, plan, *shard, ranks) for shard in shards]
    ring = bk.LocalCommunicator.ring(ranks, device=0)
    args = [a.args for a in arrays]
    # The operands live as long as the closure: arguments hold views of them.
    return lambda: ring.run_all(stream, plan, args)


def _row(
    what: str, ranks: int, ours: Callable[[], Any], theirs: Callable[[], Any] | None = None
) -> Row:
    samples: dict[str, list[float]] = {"ours": []}
    ours()
    for _ in range(_ROUNDS):
        samples["ours"].append(microseconds(torch, ours, max(4, _CALLS // ranks**2)))
        for name, backend in BACKENDS.items() if theirs is not None else ():
            # The choice of backend is made outside of what is timed.
            with sdpa_kernel(backend):
                theirs()
                samples.setdefault(name, []).append(microseconds(torch, theirs, _CALLS))
    values = {name: statistics.median(times) for name, times in samples.items()}
    mine = values.pop("ours")
    return row("host_cost", {"what": what, "ranks": ranks}, mine, values)
