"""How fast an exchange moves K and V, next to steps and next to none, and what steps lose by it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

import baracuda_kernels as bk
from benchmarks.across_gpus.contenders import Ring
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.ranks import fastest, slowest
from benchmarks.calls import step
from benchmarks.rows import Row, row

_RUNS = 9


class Way(NamedTuple):
    """How a ring's chunks move: `exchange` is "peer", "nccl" or "mixed", `sms` what it takes."""

    exchange: str
    sms: int
    comm: Any

    @classmethod
    def of(cls, comm: Any, max_ctas: int) -> Way:
        """That of a communicator."""
        kinds = {hop.kind for hop in comm.exchange}
        kind = kinds.pop() if len(kinds) == 1 else "mixed"
        return cls(kind, 0 if kind == "peer" else max_ctas, comm)

    def params(self, problem: Problem, **more: Any) -> dict[str, Any]:
        """For a row of a problem."""
        return problem.params(exchange=self.exchange, max_ctas=self.sms, **more)


def speed_row(problem: Problem, way: Way, ring: Ring) -> Row:
    """`exchange`: GB/s each way of the ring's first hop beside its steps; `alone`: next to none.

    From the grant to the arrival on the rank that came last, so that nobody's lateness counts;
    `late` is the slowest rank's, with what it waited for the others.
    """
    nbytes = 2 * problem.kv_heads * problem.chunk * problem.head_dim * 2
    beside, late = _gigabytes(ring, nbytes)
    alone, _ = _gigabytes(ring.of_few_queries(problem), nbytes)
    peers = {"alone": alone, "late": late}
    return row("exchange", way.params(problem, bytes=nbytes), beside, peers)


def steps_of(ring: Ring) -> Callable[[], None]:
    """The rank's own steps, nothing moved: each on keys that are here already."""
    ranks = ring.comm.world_size
    operands = [(ring.q, ring.k, ring.v)] * ranks

    def call() -> None:
        for number in range(ranks):
            step(ring.plan, operands, ring.comm.rank, number, ring.y, ring.state, follows=False)

    return call


def _gigabytes(ring: Ring, nbytes: int) -> tuple[float, float]:
    """(of the rank that came last, of the one that waited longest)."""
    timeline = bk.RingTimeline()
    quick, late = [], []
    for _ in range(_RUNS):
        torch.cuda.synchronize()
        dist.barrier()
        torch.cuda._sleep(1_000_000)  # all is enqueued before anything begins
        for _ in range(2):  # which bring the ranks together
            ring.run()
        ring.run(timeline)
        taken = timeline.steps[0].exchange
        quick.append(fastest(taken))
        late.append(slowest(taken))
    beside, last = (nbytes / statistics.median(x) / 1e6 for x in (quick, late))
    return beside, last
