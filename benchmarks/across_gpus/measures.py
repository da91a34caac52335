"""Rows of `benchmarks.scaling`: answers, memory, steps and speed of one problem."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import torch
import torch.distributed as dist

import baracuda_kernels as bk
from baracuda_kernels.interop.torch import ring_attention
from baracuda_kernels.testing import TOLERANCES, attention, error_of
from benchmarks.across_gpus import contenders, gathered, hops
from benchmarks.across_gpus.hops import Way
from benchmarks.across_gpus.others import Others
from benchmarks.across_gpus.problem import Problem, Whole
from benchmarks.across_gpus.ranks import Contender, interleaved, say, slowest
from benchmarks.across_gpus.ulysses import ulysses
from benchmarks.rounds import summary
from benchmarks.rows import Row, row
from benchmarks.timing import captured, not_of_torch

_SAMPLED_ROWS = 64
_TIMELINES = 7
# An exchange is hidden if no more of it than this, beside what is computed, is exposed.
_HIDDEN = 0.02
# Relative; others keep 16-bit partial answers, but what is beyond this is another answer.
_PEER_TOLERANCE = 0.02


class Measures:
    """Measures problems on the ranks of one process group, all ranks alike.

    Parameters
    ----------
    ways : list of Way
        How chunks may move. Of those by NCCL a problem gets the first that hides its exchanges, or
        the last; the first of all is what answers and memory are taken from.
    alone : Communicator
        A ring of this rank alone, for memory at P = 1.
    mesh : DeviceMesh
        All ranks, for `context_parallel`.
    """

    def __init__(self, ways: list[Way], alone: Any, mesh: Any) -> None:
        self._ways, self.alone, self._others = ways, alone, Others(mesh, _PEER_TOLERANCE)
        self.comm = ways[0].comm
        self._device = torch.device("cuda", self.comm.device)
        self.failed = False

    def rows(self, problem: Problem, rounds: int) -> list[Row]:
        """All rows of one problem."""
        ways, found = self._chosen(problem)
        self.comm = ways[0].comm
        found.insert(0, self._memory(problem))
        whole = problem.whole(self._device)
        rank = self.comm.rank
        others = {
            "all_gather": gathered.all_gather(problem, rank, whole),
            "all_gather_own": gathered.all_gather_own(problem, rank, whole),
            **ulysses(problem, rank, whole),
        }
        peers = self._others.admitted(
            problem, others, whole,
            lambda other, parts: self._off(problem, whole, other.rows, parts),
        )  # fmt: skip
        one = contenders.one_gpu(problem, whole)
        found.append(self._error(problem, whole, one))
        return found + self._speed(problem, ways, one, peers, rounds)

    def _chosen(self, problem: Problem) -> tuple[list[Way], list[Row]]:
        """The ways to measure, and the rows of their steps."""
        ways = [way for way in self._ways if way.exchange != "nccl"]
        found = [one for way in ways for one in self._steps(problem, way)]
        by_nccl = [way for way in self._ways if way.exchange == "nccl"]
        for way in by_nccl:
            steps = self._steps(problem, way)
            compute = sum(one["peers"]["compute"] for one in steps)
            if sum(one["ours"] for one in steps) <= _HIDDEN * compute or way is by_nccl[-1]:
                return [*ways, way], found + steps
        return ways, found

    def _error(self, problem: Problem, whole: Whole, one: Contender) -> Row:
        """`scaling_error`: relative error of sampled rows against float64, the worst rank's.

        The same rows for the ring and for one GPU, which has all.
        """
        ring, rows = contenders.Ring(problem, self.comm), problem.positions(self.comm.rank)
        ours = self._off(problem, whole, rows, [self._answered(ring)])
        (y,) = one.call()
        one_gpu = self._off(problem, whole, rows, [y[:, :, rows.to(self._device)]])
        family = ring.plan.family
        if not ours <= TOLERANCES[family, "bf16"].relative:
            say(f"WRONG: relative error {ours:.3e} of {problem}")
            self.failed = True
        peers = {"one_gpu": one_gpu, **self._others.errors}
        return row("scaling_error", problem.params(family=family), ours, peers)

    def _answered(self, ring: contenders.Ring) -> torch.Tensor:
        ring.y.fill_(float("nan"))
        ring.run()
        ring.comm.synchronize(contenders.stream_of(self._device), timeout=60)
        return ring.y

    def _off(self, problem: Problem, whole: Whole, rows: torch.Tensor, parts: Any) -> float:
        """The relative error of some of the rows that `parts` have."""
        random = torch.Generator().manual_seed(self.comm.rank)
        local = torch.randperm(len(rows), generator=random)[:_SAMPLED_ROWS]
        at = rows[local].to(self._device)
        exact, _ = attention(
            whole.q[:, :, at], whole.k, whole.v, is_causal=problem.causal, q_positions=at
        )
        got = torch.cat(parts, 2)[:, :, local.to(self._device)].double().cpu().numpy()
        return slowest(error_of(got, exact.cpu().numpy())["relative"])

    def _memory(self, problem: Problem) -> Row:
        """`scaling_memory`: peak bytes of a rank's tensors over a run, beside a ring of one rank.

        `other` is the growth of all else on the device from before the run to after it.
        """
        one_rank, _ = self._peak(dataclasses.replace(problem, ranks=1), self.alone)
        ours, other = self._peak(problem, self.comm)
        peers = {"one_rank": slowest(one_rank), "other": slowest(other)}
        return row("scaling_memory", problem.params(), slowest(ours), peers)

    def _peak(self, problem: Problem, comm: Any) -> tuple[int, int]:
        torch.cuda.synchronize()
        before, known = torch.cuda.memory_allocated(), [*contenders.registered.values()]
        ring = contenders.Ring(problem, comm)
        # Receive buffers that an earlier problem had registered are this one's, too.
        kept = ring.scratch.nbytes if any(x is ring.scratch for x in known) else 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()  # making a shard passes through float32
        other = not_of_torch()
        for _ in range(2):
            ring.run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before + kept, not_of_torch() - other

    def _steps(self, problem: Problem, way: Way) -> list[Row]:
        """`scaling_step` rows: milliseconds that each step's kernel waited for its exchange.

        The worst rank's, the median of several runs.
        """
        ring, timeline = contenders.Ring(problem, way.comm), bk.RingTimeline()
        taken = []
        for _ in range(_TIMELINES + 2):
            dist.barrier()
            ring.run(timeline)
            taken.append([[s.exposed, s.compute, s.exchange] for s in timeline.steps])
        worst = torch.tensor(taken[2:], device=self._device)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        rows = []
        for step, (exposed, compute, exchange) in enumerate(worst.median(0).values.tolist()):
            peers = {"compute": compute, "exchange": exchange}
            rows.append(row("scaling_step", way.params(problem, step=step), exposed, peers))
        return rows

    def _speed(
        self, problem: Problem, ways: list[Way], one: Contender, peers: dict[str, Contender],
        rounds: int,
    ) -> list[Row]:  # fmt: skip
        """`exchange` rows, and `scaling` rows, eager and captured, of every way: milliseconds.

        `ideal`: one GPU's time / ranks; `steps`: the rank's own steps without an exchange, eager or
        captured as the run; `torch_op`: PyTorch's op, beside eager runs.
        """
        rings = {way.exchange: contenders.Ring(problem, way.comm) for way in ways}
        self._compare(problem, rings)
        found = [hops.speed_row(problem, way, rings[way.exchange]) for way in ways]
        first = rings[ways[0].exchange]
        steps = hops.steps_of(first)
        calls = {
            "steps eager": steps,
            "steps graph": captured(steps),
            "torch_op": lambda: ring_attention(
                first.q, first.k, first.v, is_causal=problem.causal, sequence_layout=problem.layout
            ),
        }
        for name, ring in rings.items():
            calls |= {f"{name} eager": ring.run, f"{name} graph": captured(ring.run)}
        of_ours = {name: Contender(call) for name, call in calls.items()}
        rounds = problem.rounds(rounds)
        samples = interleaved({"one_gpu": one, **of_ours, **peers}, rounds=rounds)
        for way, what in product(ways, ("eager", "graph")):
            beside = {name: samples[name] for name in ("one_gpu", *peers)}
            beside["steps"] = samples[f"steps {what}"]
            if what == "eager":
                beside["torch_op"] = samples["torch_op"]
            figures = summary({"ours": samples[f"{way.exchange} {what}"], **beside})
            figures["peers"]["ideal"] = figures["peers"].pop("one_gpu") / problem.ranks
            how = {"what": what, "rounds": rounds, "context_parallel": self._others.form(problem)}
            found.append(row("scaling", way.params(problem, **how), **figures))
        return found

    def _compare(self, problem: Problem, rings: dict[str, contenders.Ring]) -> None:
        """The ways give the same bits."""
        answers = []
        for ring in rings.values():
            answers.append(self._answered(ring))
        if slowest(float(any(not torch.equal(answers[0], y) for y in answers[1:]))):
            say(f"WRONG: {' and '.join(rings)} differ in {problem}")
            self.failed = True
