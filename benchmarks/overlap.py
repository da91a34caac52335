"""`overlap` rows: what a ring takes beside its kernels alone and its exchanges alone; `graph` rows:
a whole local ring replayed as one CUDA graph beside its kernels replayed alone.

`local`: 8 virtual ranks on one card, not causal. `nccl_self`: one NCCL rank that sends to itself
for 8 steps, so that NCCL's copy kernels run beside the steps; P counts the steps. `sockets`: two
rank processes that share the card, over NCCL's sockets; the slower rank's medians. NCCL at its real
speed between GPUs is in none of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.helpers import cuda_ring
from tests.helpers.rank_pool import RankPool
from tests.helpers.rings import descriptor, preference, rank_arrays, shards_of

import baracuda_kernels as bk
from baracuda_kernels.testing import torch_qkv
from benchmarks import RING_HEAD_DIM as HEAD_DIM
from benchmarks import RING_HEADS as HEADS
from benchmarks.peers import available
from benchmarks.timing import captured, interleaved, summary

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
_WORKER = Path(__file__).parent / "overlap_worker.py"
GRAPH = [("sm90a", 1024), ("sm80", 1024)]
_ROUNDS = 7


def rows() -> list[dict[str, Any]]:
    """All `overlap` and `graph` rows."""
    found = [_local(*problem) for problem in available(LOCAL)]
    found += [_nccl_self(*problem) for problem in available(NCCL_SELF)]
    found += [_sockets(*problem) for problem in available(SOCKETS)]
    return found + [_graph(*problem) for problem in available(GRAPH)]


class _LocalRing:
    """8 ranks with one stream, and the same steps without any exchange."""

    def __init__(self, family: str, chunk: int) -> None:
        q, k, v = torch_qkv(
            "normal", "bf16", 0, heads=HEADS, query_len=RANKS * chunk, head_dim=HEAD_DIM
        )
        self.shards = shards_of(q, k, v, RANKS, "contiguous")
        stream = bk.Stream(torch.cuda.current_stream())
        desc = descriptor(*self.shards[0][:2], "bf16")
        self.plan = bk.RingAttentionPlan.select(stream, desc, preference(family, "bf16"))
        self.arrays = [rank_arrays(torch, self.plan, *shard, RANKS) for shard in self.shards]
        self.ring = bk.LocalCommunicator.ring(RANKS, device=0)
        self.args = [rank.args for rank in self.arrays]
        self.targets = [torch.empty_like(k) for _, k, _ in self.shards]
        self.refs = [
            {name: bk.TensorRef(x) for name, x in zip("qkv", shard, strict=True)}
            for shard in self.shards
        ]
        self.outputs = [
            (bk.TensorMut(a.y), bk.TensorMut(a.held["accumulator_scratch"])) for a in self.arrays
        ]

    def run(self, _: int = 0) -> None:
        self.ring.run_all(torch.cuda.current_stream(), self.plan, self.args)

    def compute(self, _: int = 0) -> None:
        stream = bk.Stream(torch.cuda.current_stream())
        for number in range(RANKS):
            for rank in range(RANKS):
                origin = (rank - number) % RANKS
                y, state = self.outputs[rank]
                self.plan.step(
                    stream, q=self.refs[rank]["q"], k=self.refs[origin]["k"],
                    v=self.refs[origin]["v"], y=y, accumulator_scratch=state, rank=rank,
                    origin=origin, world_size=RANKS, first=number == 0, last=number == RANKS - 1,
                )  # fmt: skip

    def exchange(self, _: int = 0) -> None:
        for _ in range(RANKS - 1):
            for rank in range(RANKS):
                for x in self.shards[rank][1:]:
                    self.targets[(rank + 1) % RANKS].copy_(x)


def _local(family: str, chunk: int) -> dict[str, Any]:
    ring = _LocalRing(family, chunk)
    calls = {"ours": ring.run, "compute": ring.compute, "exchange": ring.exchange}
    return _row(family, chunk, "local", calls)


def _nccl_self(family: str, chunk: int, max_ctas: int) -> dict[str, Any]:
    q, k, v = torch_qkv("normal", "bf16", 0, heads=HEADS, query_len=chunk, head_dim=HEAD_DIM)
    rank = cuda_ring.RankTensors(torch, q, k, v, family=family)
    rank.stage()
    ring = cuda_ring.SelfRing(RANKS, max_ctas=max_ctas)
    stream = torch.cuda.Stream()
    call = rank.call(ring.endpoint, stream.cuda_stream, ring.hops)
    only_compute = rank.call(ring.endpoint, stream.cuda_stream, ring.hops)
    rank.calls[-1][1].piece_bytes[:2] = [0, 0]
    only_exchange = rank.call(ring.endpoint, stream.cuda_stream, ring.hops)
    rank.calls[-1][0].step.query_len = 0

    def runs(which: Any) -> Callable[[int], None]:
        return lambda _: cuda_ring.check(ring.lib.baracuda_ring_run(ctypes.byref(which), 1))

    calls = {
        "ours": runs(call),
        "compute": runs(only_compute),
        "exchange": runs(only_exchange),
    }
    with torch.cuda.stream(stream):
        row = _row(family, chunk, "nccl_self", calls, max_ctas=max_ctas)
        torch.cuda.synchronize()
    ring.close()
    return row


def _sockets(family: str, chunk: int) -> dict[str, Any]:
    ranks = 2
    pool = RankPool(ranks, _WORKER, device_each=False)
    try:
        answers = pool.run(
            {"do": "time_overlap", "family": family, "rows": chunk, "heads": HEADS,
             "head_dim": HEAD_DIM, "rounds": _ROUNDS},
            seconds=120,
        )  # fmt: skip
    finally:
        pool.close()
    slower = {name: max(answer[name] for answer in answers) for name in answers[0]}
    params = {"family": family, "ranks": ranks, "chunk": chunk, "transport": "sockets"}
    ours = slower.pop("ours")
    return {"name": "overlap", "params": params, "unit": "ms", "ours": ours, "peers": slower}


def _graph(family: str, chunk: int) -> dict[str, Any]:
    ring = _LocalRing(family, chunk)
    replays = {"ours": captured(ring.run), "kernels": captured(ring.compute)}
    calls = {name: lambda _, replay=replay: replay() for name, replay in replays.items()}
    ours, peers = summary(interleaved(calls))
    params = {"family": family, "ranks": RANKS, "chunk": chunk}
    return {"name": "graph", "params": params, "unit": "ms", "ours": ours, "peers": peers}


def _row(
    family: str, chunk: int, transport: str, calls: dict[str, Callable[[int], None]], **more: Any
) -> dict[str, Any]:
    ours, peers = summary(interleaved(calls, rounds=_ROUNDS))
    params = {"family": family, "ranks": RANKS, "chunk": chunk, "transport": transport, **more}
    return {"name": "overlap", "params": params, "unit": "ms", "ours": ours, "peers": peers}
