"""`host_cost` rows: microseconds of the calling thread per call, the GPU's work not counted."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel

import baracuda_kernels as bk
from baracuda_kernels.testing import preference
from benchmarks.calls import Call, Ring
from benchmarks.peers import BACKENDS
from benchmarks.rows import Row, row
from benchmarks.timing import stream
from tests.helpers import cuda_ring
from tests.helpers.host_time import microseconds
from tests.helpers.loop_cost import time_calls
from tests.helpers.rings import rank_arrays

_CALLS = 200
_ROUNDS = 15
# Small enough that the GPU keeps up and the launch queue never fills.
_HEADS, _ROWS, _HEAD_DIM = 2, 64, 64
_FAMILY = "sm80"


def rows() -> list[Row]:
    """All `host_cost` rows."""
    on = stream()
    call = Call(_FAMILY, "bf16", _HEAD_DIM, 1, _HEADS, _HEADS, _ROWS)
    desc, pref = call.descriptor(), preference(_FAMILY, "bf16")
    q, k, v = call.qkv(0)
    y = torch.empty_like(q)
    sdpa = call.plan()
    args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=y)

    def theirs() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)

    found = [
        _row("flash_sdpa.run", 1, lambda: sdpa.run(on, args), theirs),
        _row("flash_sdpa.run, args made anew", 1,
             lambda: sdpa.run(on, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y)), theirs),
        _row("flash_sdpa.select", 1, lambda: bk.FlashSdpaPlan.select(on, desc, pref)),
    ]  # fmt: skip
    for ranks in (1, 2, 4, 8):
        found.append(_row("ring_attention.run_all", ranks, _run_all(on, ranks)))
    found.append(_one_rank(on))
    return found + [_loop(ranks) for ranks in (2, 8, 64)]


def _ring(ranks: int) -> tuple[Ring, list[Any]]:
    ring = Ring(_FAMILY, ranks, _ROWS, heads=_HEADS, head_dim=_HEAD_DIM)
    return ring, [rank_arrays(torch, ring.plan, *shard, ranks) for shard in ring.shards]


def _run_all(on: Any, ranks: int) -> Callable[[], Any]:
    ring, arrays = _ring(ranks)
    communicators = bk.LocalCommunicator.ring(ranks, device=0)
    args = [a.args for a in arrays]
    return lambda: communicators.run_all(on, ring.plan, args)


def _one_rank(on: Any) -> Row:
    """`plan.run` of a NCCL communicator of one, beside the launch of its kernel alone from C."""
    ring, (arrays,) = _ring(1)
    rank = cuda_ring.RankTensors(torch, *ring.qkv, family=_FAMILY)
    rank.stage()
    params = rank.step()
    params.flags |= 3  # FIRST and LAST
    raw = torch.cuda.current_stream().cuda_stream
    with bk.Communicator.new_single_gpu(0) as comm:
        found = _row("ring_attention.run", 1, lambda: ring.plan.run(on, comm, arrays.args))
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
