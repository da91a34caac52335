"""The same attention by gathering all keys and values first, on every rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

import baracuda_kernels as bk
from benchmarks.across_gpus.contenders import stream_of
from benchmarks.across_gpus.problem import Problem, Whole
from benchmarks.across_gpus.ranks import Contender
from benchmarks.calls import scratch


class _Gathered:
    """This rank's queries, and the keys and values of all ranks, gathered by each `keys()`.

    Causal queries are in two halves, balanced as in ZIGZAG, each against the keys up to its own
    end. The gathered chunks are contiguous ones, so nothing need be put in order.
    """

    def __init__(self, problem: Problem, rank: int, whole: Whole) -> None:
        self.rows = problem.positions(rank, problem.balanced)
        self.q = whole.q[:, :, self.rows.to(whole.q.device)]
        self.key_rows = problem.positions(rank, "contiguous")
        mine = slice(rank * problem.chunk, (rank + 1) * problem.chunk)
        # [chunk, H, D]: what is gathered is then whole as it lies.
        self.own = [x[0, :, mine].transpose(0, 1).contiguous() for x in whole[1:]]
        self._all = [x.new_empty(problem.ranks * problem.chunk, *x.shape[1:]) for x in self.own]
        # (queries, keys, number of the queries' chunk among those of that length)
        half, last = problem.chunk // 2, 2 * problem.ranks - 1 - rank
        self.parts = [(slice(0, problem.chunk), problem.ranks * problem.chunk, 0)]
        if problem.causal:
            first_half = slice(0, half), (rank + 1) * half, rank
            self.parts = [(slice(half, problem.chunk), (last + 1) * half, last), first_half]

    def keys(self) -> list[torch.Tensor]:
        """K and V, [1, H, ranks * chunk, D]."""
        for own, everyone in zip(self.own, self._all, strict=True):
            dist.all_gather_into_tensor(everyone, own)
        return [_by_heads(x) for x in self._all]


def _by_heads(x: torch.Tensor) -> torch.Tensor:
    """[rows, H, D] as [1, H, rows, D]."""
    return x.transpose(0, 1)[None]


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
            for queries, keys, _ in gathered.parts[::-1]:
                q = gathered.q[:, :, queries]
                mask = causal_lower_right(q.shape[2], keys) if problem.causal else None
                y = torch.nn.functional.scaled_dot_product_attention(
                    q, k[:, :, :keys], v[:, :, :keys], attn_mask=mask, enable_gqa=True
                )
                found.append(y)
        return found

    return Contender(call, gathered.rows)


def all_gather_own(
    problem: Problem, rank: int, whole: Whole, dy: torch.Tensor | None = None
) -> Contender:
    """The same with our kernel: what the ring gains by overlap, whatever the kernel.

    With `dy` a call is a step, which gives dq of this rank's queries, and dk and dv of its chunk.
    """
    device, gathered = whole.q.device, _Gathered(problem, rank, whole)
    y, stream = torch.empty_like(gathered.q), stream_of(device)

    def part(x: torch.Tensor, queries: slice) -> torch.Tensor:
        return x[:, :, queries]

    calls = []
    for queries, keys, number in gathered.parts:
        desc = problem.descriptor(queries.stop - queries.start, keys, "contiguous")
        lse = None if dy is None else torch.empty(part(y, queries).shape[:3], device=device)
        # A ring's first and last step in one, of the rank that has just these queries.
        own: dict[str, Any] = {
            "rank": number, "world_size": 2 * problem.ranks, "q": part(gathered.q, queries),
            "y": part(y, queries), "lse": lse,
        }  # fmt: skip
        calls.append((bk.RingAttentionPlan.select(desc, stream), desc, queries, keys, own))

    def forward() -> list[torch.Tensor]:
        k, v = gathered.keys()
        for plan, _, _, keys, own in calls:
            plan.step(stream_of(device), k=k[:, :, :keys], v=v[:, :, :keys], **own)
        return [k, v]

    def answer() -> list[torch.Tensor]:
        forward()
        return [y]

    if dy is None:
        return Contender(answer, gathered.rows)
    dy, dq = dy[:, :, gathered.rows.to(device)], torch.empty_like(y)
    everyone, apart = ([x.new_zeros(problem.ranks * problem.chunk, *x.shape[1:])
                        for x in gathered.own] for _ in range(2))  # fmt: skip
    mine = [torch.empty_like(x) for x in gathered.own]
    backward = [bk.RingAttentionBackwardPlan.select(one[1], stream) for one in calls]
    space = [scratch(plan.scratch_bytes, device) for plan in backward]

    def step() -> list[torch.Tensor]:
        k, v = forward()
        for i, (plan, (_, _, queries, keys, own)) in enumerate(zip(backward, calls, strict=True)):
            # The first part sees the most keys; the others' shares are added to its.
            dk, dv = (_by_heads(x[:keys]) for x in (apart if i else everyone))
            plan.step(
                stream_of(device), k=k[:, :, :keys], v=v[:, :, :keys], dk=dk, dv=dv,
                dy=part(dy, queries), dq=part(dq, queries), scratch=space[i], **own,
            )  # fmt: skip
            if i:
                for whole_sum, share in zip(everyone, apart, strict=True):
                    whole_sum[:keys] += share[:keys]
        for own_sum, whole_sum in zip(mine, everyone, strict=True):
            dist.reduce_scatter_tensor(own_sum, whole_sum)
        return [dq, *(_by_heads(x) for x in mine)]

    return Contender(step, gathered.rows, key_rows=gathered.key_rows)
