"""The same attention by our ring, by one GPU without a ring, and by gathering all keys first.

Each contender's `call` takes no arguments and enqueues its work on the current stream. What it
returns are parts of [1, H, rows, D], in the order of `rows`: their global positions.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

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


def one_gpu(problem: Problem, whole: Whole, dy: torch.Tensor | None = None) -> Contender:
    """The whole attention on one GPU alone: 1 / ranks of its time is the ideal.

    With `dy` a call is a step, which gives dq, dk and dv.
    """
    (q, k, v), device, total = whole, whole.q.device, problem.ranks * problem.chunk
    desc = gradients.descriptor(gradients.Problem(*whole, dy), is_causal=problem.causal)
    plan = bk.FlashSdpaPlan.select(stream_of(device), desc)
    y = torch.empty_like(q)
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
        q=q, k=k, v=v, y=y, dy=dy, lse=lse, **found, scratch=scratch(backward.scratch_bytes)
    )

    def step() -> list[torch.Tensor]:
        call()
        backward.run(stream_of(device), of_gradients)
        return [*found.values()]

    return Contender(step, torch.arange(total))


class _Gathered:
    """This rank's queries, and the keys and values of all ranks, gathered by each `keys()`.

    Causal queries are in two halves, balanced as in ZIGZAG, each against the keys up to its own
    end. The gathered chunks are contiguous ones, so nothing need be put in order.
    """

    def __init__(self, problem: Problem, rank: int, whole: Whole) -> None:
        self.rows = problem.positions(rank, problem.balanced)
        self.q = whole.q[:, :, self.rows.to(whole.q.device)]
        mine = slice(rank * problem.chunk, (rank + 1) * problem.chunk)
        # [chunk, H, D]: what is gathered is then whole as it lies.
        self._own = [x[0, :, mine].transpose(0, 1).contiguous() for x in whole[1:]]
        self._all = [x.new_empty(problem.ranks * problem.chunk, *x.shape[1:]) for x in self._own]
        # (queries, keys, number of the queries' chunk among those of that length)
        half, last = problem.chunk // 2, 2 * problem.ranks - 1 - rank
        self.parts = [(slice(0, problem.chunk), problem.ranks * problem.chunk, 0)]
        if problem.causal:
            first_half = slice(0, half), (rank + 1) * half, rank
            self.parts = [first_half, (slice(half, problem.chunk), (last + 1) * half, last)]

    def keys(self) -> list[torch.Tensor]:
        """K and V, [1, H, ranks * chunk, D]."""
        for own, everyone in zip(self._own, self._all, strict=True):
            dist.all_gather_into_tensor(everyone, own)
        return [x.transpose(0, 1)[None] for x in self._all]


def all_gather(problem: Problem, rank: int, whole: Whole) -> Contender:
    """K and V gathered to every rank, then PyTorch's attention on this rank's queries.

    cuDNN where it can, FlashAttention-2 when causal: cuDNN's mask starts at the first key.
    """
    gathered = _Gathered(problem, rank, whole)
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    if whole.q.is_cuda:
        backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION][problem.causal :]

    def call() -> list[torch.Tensor]:
        k, v = gathered.keys()
        with sdpa_kernel(backends, set_priority=True):
            found = []  # not put together: nobody pays for that
            for queries, keys, _ in gathered.parts:
                q = gathered.q[:, :, queries]
                mask = causal_lower_right(q.shape[2], keys) if problem.causal else None
                y = torch.nn.functional.scaled_dot_product_attention(
                    q, k[:, :, :keys], v[:, :, :keys], attn_mask=mask, enable_gqa=True
                )
                found.append(y)
        return found

    return Contender(call, gathered.rows)


def all_gather_own(problem: Problem, rank: int, whole: Whole) -> Contender:
    """The same with our kernel: what the ring gains by overlap, whatever the kernel."""
    device = whole.q.device
    gathered = _Gathered(problem, rank, whole)
    y = torch.empty_like(gathered.q)
    parts = []
    for queries, keys, number in gathered.parts:
        desc = problem.descriptor(queries.stop - queries.start, keys, "contiguous")
        plan = bk.RingAttentionPlan.select(desc, stream_of(device))
        parts.append((plan, gathered.q[:, :, queries], y[:, :, queries], keys, number))

    def call() -> list[torch.Tensor]:
        k, v = gathered.keys()
        for plan, q, out, keys, number in parts:
            # A ring's first and last step in one, of the rank that has just these queries.
            plan.step(
                stream_of(device), q=q, k=k[:, :, :keys], v=v[:, :, :keys], y=out, rank=number,
                world_size=2 * problem.ranks,
            )  # fmt: skip
        return [y]

    return Contender(call, gathered.rows)


def stream_of(device: torch.device) -> bk.Stream:
    """The current stream of a device."""
    return bk.Stream.host() if device.type == "cpu" else bk.Stream(torch.cuda.current_stream())
