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
from contextlib import closing
from functools import partial
from typing import Any

import torch

import baracuda_kernels as bk
from baracuda_kernels.testing import preference
from benchmarks import ROOT
from benchmarks.calls import Call, Ring, step
from benchmarks.peers import available
from benchmarks.rounds import in_rounds, summary
from benchmarks.rows import Row, row
from benchmarks.timing import Calls, captured, interleaved, sample, stream
from tests.helpers import cuda_ring
from tests.helpers.rank_pool import RankPool
from tests.helpers.rings import RankArrays, rank_arrays

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
        super().__init__(Call(family, chunk), RANKS)
        arrays = self.arrays()
        self.run = self.run_all(arrays)
        self.operands = self.shards
        self.shards = [[bk.TensorRef(x) for x in shard] for shard in self.shards]
        self.outputs = [
            (bk.TensorMut(a.y), bk.TensorMut(a.held["accumulator_scratch"])) for a in arrays
        ]
        self.targets = [torch.empty_like(k) for _, k, _ in self.operands]

    def compute(self) -> None:
        for number in range(RANKS):
            for rank, (y, state) in enumerate(self.outputs):
                self.step(rank, number, y, state, follows=False)

    def exchange(self) -> None:
        for _ in range(RANKS - 1):
            for rank in range(RANKS):
                for x in self.operands[rank][1:]:
                    self.targets[(rank + 1) % RANKS].copy_(x)


def _local(family: str, chunk: int) -> Row:
    ring = _LocalRing(family, chunk)
    calls = {"ours": ring.run, "compute": ring.compute, "exchange": ring.exchange}
    return _row(family, chunk, "local", calls)


def _nccl_self(family: str, chunk: int, max_ctas: int) -> Row:
    q, k, v = Call(family, chunk).qkv(0)
    rank = cuda_ring.RankTensors(torch, q, k, v, family=family)
    rank.stage()
    ring = cuda_ring.SelfRing(RANKS, max_ctas=max_ctas)
    own = torch.cuda.Stream()
    call = rank.call(ring.endpoint, own.cuda_stream, ring.hops)
    only_compute = rank.call(ring.endpoint, own.cuda_stream, ring.hops)
    rank.calls[-1][1].piece_bytes[:2] = [0, 0]
    only_exchange = rank.call(ring.endpoint, own.cuda_stream, ring.hops)
    rank.calls[-1][0].step.query_len = 0

    def run(which: Any) -> None:
        cuda_ring.check(ring.lib.baracuda_ring_run(ctypes.byref(which), 1))

    of = {"ours": call, "compute": only_compute, "exchange": only_exchange}
    calls = {name: partial(run, which) for name, which in of.items()}
    with torch.cuda.stream(own):
        found = _row(family, chunk, "nccl_self", calls, max_ctas=max_ctas)
        torch.cuda.synchronize()
    ring.close()
    return found


def _sockets(family: str, chunk: int) -> Row:
    ranks = 2
    # The workers are the tests'; what they time is below.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    task = {"do": "call", "function": f"{__name__}:time_rank", "family": family, "rows": chunk}
    with closing(RankPool(ranks, device_each=False, environment={"PYTHONPATH": path})) as pool:
        answers = pool.run(task, seconds=120)
    slower = {name: max(answer[name] for answer in answers) for name in answers[0]}
    params = {"family": family, "ranks": ranks, "chunk": chunk, "transport": "sockets"}
    return row("overlap", params, slower.pop("ours"), slower)


def time_rank(comm: bk.Communicator, task: dict[str, Any]) -> dict[str, float]:
    """On a rank: milliseconds of a ring, of its kernels alone, and of one with next to no kernels."""
    whole, on, ranks = Call(task["family"], task["rows"]), stream(), comm.world_size
    q, k, v = whole.qkv(comm.rank)

    def ring(rows: int) -> RankArrays:
        desc = whole._replace(query_len=rows, key_len=task["rows"]).descriptor(
            bk.RingAttentionDescriptor
        )
        plan = bk.RingAttentionPlan.select(on, desc, preference(whole.family, whole.dtype))
        return rank_arrays(torch, plan, q[:, :, :rows].contiguous(), k, v, ranks)

    all_rows, one_row = ring(task["rows"]), ring(1)
    state = all_rows.held["accumulator_scratch"]

    def kernels() -> None:
        for number in range(ranks):
            step(all_rows.plan, [(q, k, v)] * ranks, comm.rank, number, all_rows.y, state)

    calls = {
        "ours": lambda: all_rows.plan.run(on, comm, all_rows.args),
        "compute": kernels,
        "exchange": lambda: one_row.plan.run(on, comm, one_row.args),
    }

    def one(name: str, _: int) -> float:
        return sample(calls[name], 1, lambda: comm.synchronize(on))  # with a deadline

    samples = in_rounds(calls, one, rounds=_ROUNDS, milliseconds=0, least=1, most=1)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _graph(family: str, chunk: int) -> Row:
    ring = _LocalRing(family, chunk)
    calls = {"ours": captured(ring.run), "kernels": captured(ring.compute)}
    params = {"family": family, "ranks": RANKS, "chunk": chunk}
    return row("graph", params, **summary(interleaved(calls)))


def _row(family: str, chunk: int, transport: str, calls: Calls, **more: Any) -> Row:
    params = {"family": family, "ranks": RANKS, "chunk": chunk, "transport": transport, **more}
    return row("overlap", params, **summary(interleaved(calls, rounds=_ROUNDS)))
