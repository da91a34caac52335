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

_CALLS = 200
_ROUNDS = 15
# Small enough that the GPU keeps up and the launch queue never fills.
_CALL = Call("sm80", 64, head_dim=64, heads=2)


def rows() -> list[Row]:
    """All `host_cost` rows."""
    on, sdpa, desc = stream(), _CALL.plan(), _CALL.descriptor()
    q, k, v = _CALL.qkv(0)
    y, pref = torch.empty_like(q), preference(_CALL.family, _CALL.dtype)
    args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=y)

    theirs = dict.fromkeys(
        BACKENDS, lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
    )
    found = [
        _row("flash_sdpa.run", 1, lambda: sdpa.run(on, args), **theirs),
        _row("flash_sdpa.run, args made anew", 1,
             lambda: sdpa.run(on, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y)), **theirs),
        _row("flash_sdpa.select", 1, lambda: bk.FlashSdpaPlan.select(on, desc, pref)),
    ]  # fmt: skip
    for ranks in (1, 2, 4, 8):
        ring = Ring(_CALL, ranks)
        found.append(_row("ring_attention.run_all", ranks, ring.run_all(ring.arrays())))
    found.append(_one_rank(on))
    return found + [_loop(ranks) for ranks in (2, 8, 64)]


def _one_rank(on: Any) -> Row:
    """`plan.run` of a NCCL communicator of one, beside the launch of its kernel alone from C."""
    ring = Ring(_CALL, 1)
    (arrays,), (q, k, v) = ring.arrays(), ring.qkv
    rank = cuda_ring.RankTensors(torch, q, k, v, family=_CALL.family)
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


def _row(what: str, ranks: int, ours: Callable[[], Any], **theirs: Callable[[], Any]) -> Row:
    """`theirs` by PyTorch's backend."""
    samples: dict[str, list[float]] = {"ours": []}
    ours()
    for _ in range(_ROUNDS):
        samples["ours"].append(microseconds(torch, ours, max(4, _CALLS // ranks**2)))
        for name, call in theirs.items():
            # The choice of backend is made outside of what is timed.
            with sdpa_kernel(BACKENDS[name]):
                call()
                samples.setdefault(name, []).append(microseconds(torch, call, _CALLS))
    values = {name: statistics.median(times) for name, times in samples.items()}
    mine = values.pop("ours")
    return row("host_cost", {"what": what, "ranks": ranks}, mine, values)
