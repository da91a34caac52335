"""`overlap` rows: what a ring takes beside its kernels alone and its exchanges alone; `graph` rows:
a whole local ring replayed as one CUDA graph beside its kernels replayed alone.

`local`: 8 virtual ranks on one card, not causal. `nccl_self`: one NCCL rank that sends to itself
for 8 steps, so that NCCL's copy kernels run beside the steps; P counts the steps. `sockets`: two
rank processes that share the card, over NCCL's sockets; the slower rank's medians. NCCL at its real
speed between GPUs is in none of them.
"""

from __future__ import annotations

import ctypes
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch

import baracuda_kernels as bk
from baracuda_kernels.testing import preference, torch_qkv
from benchmarks import RING_HEAD_DIM as HEAD_DIM
from benchmarks import RING_HEADS as HEADS
from benchmarks import ROOT
from benchmarks.calls import Ring, step
from benchmarks.peers import available
from benchmarks.rounds import in_rounds, summary
from benchmarks.rows import Row, row
from benchmarks.timing import Calls, captured, interleaved, stream
from tests.helpers import cuda_ring
from tests.helpers.rank_pool import RankPool
from tests.helpers.rings import descriptor, rank_arrays

RANKS = 8
# (family, chunk)
LOCAL = [("sm90a", 4096), ("sm80", 4096)]
# and max_ctas
NCCL_SELF = [
    ("sm90a", 4096, 4),
    ("sm90a", 6144, 4),
    ("sm90a", 4096, 8),
    ("sm80", 4096, 2),
    ("sm80", 6144, 2),
    ("sm80", 4096, 4),
]
SOCKETS = [("sm90a", 16384)]
GRAPH = [("sm90a", 1024), ("sm80", 1024)]
_ROUNDS = 7


def rows() -> list[Row]:
    """All `overlap` and `graph` rows."""
    found = [_local(*problem) for problem in available(LOCAL)]
    found += [_nccl_self(*problem) for problem in available(NCCL_SELF)]
    found += [_sockets(*problem) for problem in available(SOCKETS)]
    return found + [_graph(*problem) for problem in available(GRAPH)]


class _LocalRing(Ring):
    """8 ranks with one stream, and the same steps without any exchange."""

    def __init__(self, family: str, chunk: int) -> None:
        super().__init__(family, RANKS, chunk, heads=HEADS, head_dim=HEAD_DIM)
        self.arrays = [rank_arrays(torch, self.plan, *shard, RANKS) for shard in self.shards]
        self.communicators = bk.LocalCommunicator.ring(RANKS, device=0)
        self.args = [rank.args for rank in self.arrays]
        self.operands = self.shards
        self.shards = [[bk.TensorRef(x) for x in shard] for shard in self.shards]
        self.outputs = [
            (bk.TensorMut(a.y), bk.TensorMut(a.held["accumulator_scratch"])) for a in self.arrays
        ]
        self.targets = [torch.empty_like(k) for _, k, _ in self.operands]

    def run(self, _: int = 0) -> None:
        self.communicators.run_all(torch.cuda.current_stream(), self.plan, self.args)

    def compute(self, _: int = 0) -> None:
        for number in range(RANKS):
            for rank in range(RANKS):
                self.step(rank, number, *self.outputs[rank], follows=False)

    def exchange(self, _: int = 0) -> None:
        for _ in range(RANKS - 1):
            for rank in range(RANKS):
                for x in self.operands[rank][1:]:
                    self.targets[(rank + 1) % RANKS].copy_(x)


def _local(family: str, chunk: int) -> Row:
    ring = _LocalRing(family, chunk)
    calls: Calls = {"ours": ring.run, "compute": ring.compute, "exchange": ring.exchange}
    return _row(family, chunk, "local", calls)


def _nccl_self(family: str, chunk: int, max_ctas: int) -> Row:
    q, k, v = torch_qkv("normal", "bf16", 0, heads=HEADS, query_len=chunk, head_dim=HEAD_DIM)
    rank = cuda_ring.RankTensors(torch, q, k, v, family=family)
    rank.stage()
    ring = cuda_ring.SelfRing(RANKS, max_ctas=max_ctas)
    own = torch.cuda.Stream()
    call = rank.call(ring.endpoint, own.cuda_stream, ring.hops)
    only_compute = rank.call(ring.endpoint, own.cuda_stream, ring.hops)
    rank.calls[-1][1].piece_bytes[:2] = [0, 0]
    only_exchange = rank.call(ring.endpoint, own.cuda_stream, ring.hops)
    rank.calls[-1][0].step.query_len = 0

    def runs(which: Any) -> Callable[[int], None]:
        return lambda _: cuda_ring.check(ring.lib.baracuda_ring_run(ctypes.byref(which), 1))

    calls = {"ours": call, "compute": only_compute, "exchange": only_exchange}
    with torch.cuda.stream(own):
        found = _row(
            family, chunk, "nccl_self", {name: runs(x) for name, x in calls.items()},
            max_ctas=max_ctas,
        )  # fmt: skip
        torch.cuda.synchronize()
    ring.close()
    return found


def _sockets(family: str, chunk: int) -> Row:
    ranks = 2
    # The workers are the tests'; what they time is below.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    pool = RankPool(ranks, device_each=False, environment={"PYTHONPATH": path})
    try:
        task = {"do": "call", "function": f"{__name__}:time_rank", "family": family, "rows": chunk}
        answers = pool.run(task, seconds=120)
    finally:
        pool.close()
    slower = {name: max(answer[name] for answer in answers) for name in answers[0]}
    params = {"family": family, "ranks": ranks, "chunk": chunk, "transport": "sockets"}
    return row("overlap", params, slower.pop("ours"), slower)


def time_rank(comm: bk.Communicator, task: dict[str, Any]) -> dict[str, float]:
    """On a rank: milliseconds of a ring, of its kernels alone, and of one with next to no kernels."""
    rank, ranks, chunk = comm.rank, comm.world_size, task["rows"]
    q, k, v = torch_qkv("normal", "bf16", rank, heads=HEADS, query_len=chunk, head_dim=HEAD_DIM)
    on = stream()
    pref = preference(task["family"], "bf16")

    def ring(rows: int) -> tuple[Any, Any]:
        some = q[:, :, :rows].contiguous()
        plan = bk.RingAttentionPlan.select(on, descriptor(some, k, "bf16"), pref)
        return plan, rank_arrays(torch, plan, some, k, v, ranks)

    (plan, arrays), (plan_of_one, arrays_of_one) = ring(chunk), ring(1)
    state = arrays.held["accumulator_scratch"]

    def kernels() -> None:
        for number in range(ranks):
            step(plan, [(q, k, v)] * ranks, rank, number, arrays.y, state)

    calls = {
        "ours": lambda: plan.run(on, comm, arrays.args),
        "compute": kernels,
        "exchange": lambda: plan_of_one.run(on, comm, arrays_of_one.args),
    }

    def one(name: str, _: int) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        calls[name]()
        stop.record()
        comm.synchronize(on)  # with a deadline, which the event has not
        return start.elapsed_time(stop)

    samples = in_rounds(calls, one, rounds=_ROUNDS, milliseconds=0, least=1, most=1)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _graph(family: str, chunk: int) -> Row:
    ring = _LocalRing(family, chunk)
    replays = {"ours": captured(ring.run), "kernels": captured(ring.compute)}
    calls = {name: lambda _, replay=replay: replay() for name, replay in replays.items()}
    params = {"family": family, "ranks": RANKS, "chunk": chunk}
    return row("graph", params, **summary(interleaved(calls)))


def _row(family: str, chunk: int, transport: str, calls: Calls, **more: Any) -> Row:
    params = {"family": family, "ranks": RANKS, "chunk": chunk, "transport": transport, **more}
    return row("overlap", params, **summary(interleaved(calls, rounds=_ROUNDS)))
