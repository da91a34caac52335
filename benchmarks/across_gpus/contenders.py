"""The same attention by our ring, and by one GPU without a ring; others stand beside this file.

Each contender's `call` takes no arguments and enqueues its work on the current stream. What it
returns are parts of [1, H, rows, D], in the order of `rows`: their global positions.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.across_gpus.problem import Problem, Whole
from benchmarks.across_gpus.ranks import Contender
from benchmarks.calls import scratch
from tests.helpers import gradients

# The receive buffers of a communicator that has hops by peer, by their elements: registered once, as
# what is registered stays. To be cleared before the communicators are closed.
registered: dict[tuple[Any, int], torch.Tensor] = {}


def _receive_buffers(comm: Any, elements: int, device: torch.device) -> torch.Tensor:
    by_peer = any(hop.kind == "peer" for hop in comm.exchange)
    if by_peer and (comm, elements) in registered:
        return registered[comm, elements]
    buffers = torch.empty(2, elements, dtype=torch.bfloat16, device=device)
    if by_peer:
        comm.register(buffers)
        registered[comm, elements] = buffers
    return buffers


class Ring:
    """`RingAttentionPlan` on this rank's shards, with all that a run of any ring takes."""

    def __init__(self, problem: Problem, comm: Any) -> None:
        rank, device = comm.rank, torch.device("cuda", comm.device)
        self.comm = comm
        self.q, self.k, self.v = (problem.shard(name, rank, device) for name in "qkv")
        self.y = torch.empty_like(self.q)
        self.plan = bk.RingAttentionPlan.select(problem.descriptor(), stream_of(device))
        self.scratch = _receive_buffers(comm, self.plan.kv_scratch_elements, device)
        self.state = scratch(self.plan.accumulator_scratch_bytes)
        self.args = self._args(self.q, self.y)

    def _args(self, q: torch.Tensor, y: torch.Tensor) -> bk.RingAttentionArgs:
        return bk.RingAttentionArgs(
            q=q, k=self.k, v=self.v, y=y, kv_scratch_a=self.scratch[0],
            kv_scratch_b=self.scratch[1], accumulator_scratch=self.state,
        )  # fmt: skip

    def of_few_queries(self, problem: Problem) -> Ring:
        """A ring that moves the same K and V in the same buffers for 64 rows of a few heads."""
        q = self.q[:, : problem.kv_heads, :64].contiguous()
        few = dataclasses.replace(
            problem, heads=problem.kv_heads, causal=False, layout="contiguous"
        )
        ring = copy.copy(self)
        ring.plan = bk.RingAttentionPlan.select(few.descriptor(64), stream_of(q.device))
        ring.args = self._args(q, torch.empty_like(q))
        return ring

    def run(self, timeline: bk.RingTimeline | None = None) -> None:
        """One eager run."""
        self.plan.run(torch.cuda.current_stream(), self.comm, self.args, timeline=timeline)


def one_gpu(
    problem: Problem, whole: Whole, dy: torch.Tensor | None = None, y: torch.Tensor | None = None
) -> Contender:
    """The whole attention on one GPU alone: 1 / ranks of its time is the ideal.

    With `dy` a call is a step, which gives dq, dk and dv; `y` may be the caller's.
    """
    (q, k, v), device, total = whole, whole.q.device, problem.ranks * problem.chunk
    desc = gradients.descriptor(gradients.Problem(*whole, dy), is_causal=problem.causal)
    plan = bk.FlashSdpaPlan.select(stream_of(device), desc)
    y = torch.empty_like(q) if y is None else y
    lse = None if dy is None else torch.empty(q.shape[:3], device=device)
    args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse)

    def call() -> list[torch.Tensor]:
        plan.run(stream_of(device), args)
        return [y]

    if dy is None:
        return Contender(call, torch.arange(total))
    backward = bk.FlashSdpaBackwardPlan.select(desc, stream_of(device))
    found = {f"d{name}": torch.empty_like(x) for name, x in whole._asdict().items()}
    of_gradients = bk.FlashSdpaBackwardArgs(
        q=q, k=k, v=v, y=y, dy=dy, lse=lse, **found, scratch=scratch(backward.scratch_bytes, device)
    )

    def step() -> list[torch.Tensor]:
        call()
        backward.run(stream_of(device), of_gradients)
        return [*found.values()]

    return Contender(step, torch.arange(total))


def stream_of(device: torch.device) -> bk.Stream:
    """The current stream of a device."""
    return bk.Stream.host() if device.type == "cpu" else bk.Stream(torch.cuda.current_stream())
