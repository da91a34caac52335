"""The same attention by our ring, by one GPU without a ring, and by what others do across GPUs.

Each contender is a function without arguments that enqueues its work on the current stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

import baracuda_kernels as bk
from benchmarks.across_gpus.problem import Problem

Call = Callable[[], Any]


class Ring:
    """`RingAttentionPlan` on this rank's shards, with all that its run needs."""

    def __init__(self, problem: Problem, comm: Any) -> None:
        rank, device = comm.rank, torch.device("cuda", torch.cuda.current_device())
        self.comm = comm
        self.q, self.k, self.v = (problem.shard(name, rank, device) for name in "qkv")
        self.y = torch.empty_like(self.q)
        desc = bk.RingAttentionDescriptor(
            batch_size=1,
            num_heads=problem.heads,
            query_len=problem.chunk,
            key_len=problem.chunk,
            head_dim=problem.head_dim,
            is_causal=problem.causal,
            element=bk.ElementKind.BF16,
            num_kv_heads=problem.kv_heads,
            sequence_layout=bk.SequenceLayout.parse(problem.layout),
        )
        self.plan = bk.RingAttentionPlan.select(bk.Stream(torch.cuda.current_stream()), desc)
        self._scratch = torch.empty(
            2, self.plan.kv_scratch_elements, dtype=self.q.dtype, device=device
        )
        self._state = torch.empty(
            self.plan.accumulator_scratch_bytes, dtype=torch.uint8, device=device
        )
        self.args = bk.RingAttentionArgs(
            q=self.q,
            k=self.k,
            v=self.v,
            y=self.y,
            kv_scratch_a=self._scratch[0],
            kv_scratch_b=self._scratch[1],
            accumulator_scratch=self._state,
        )

    def run(self) -> None:
        """One eager run."""
        self.plan.run(torch.cuda.current_stream(), self.comm, self.args)


def one_gpu(problem: Problem) -> tuple[Call, torch.Tensor]:
    """The whole attention on this GPU alone, and its y: 1 / ranks of its time is the ideal."""
    device = torch.device("cuda", torch.cuda.current_device())
    q, k, v = (problem.whole(name, device) for name in "qkv")
    total = problem.ranks * problem.chunk
    desc = bk.FlashSdpaDescriptor(
        batch_size=1,
        num_heads=problem.heads,
        query_len=total,
        key_len=total,
        head_dim=problem.head_dim,
        is_causal=problem.causal,
        element=bk.ElementKind.BF16,
        num_kv_heads=problem.kv_heads,
    )
    plan = bk.FlashSdpaPlan.select(bk.Stream(torch.cuda.current_stream()), desc)
    y = torch.empty_like(q)
    args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=y)
    return lambda: plan.run(torch.cuda.current_stream(), args), y


def all_gather(problem: Problem, rank: int) -> Call:
    """K and V gathered to every rank, then PyTorch's attention on this rank's queries.

    The queries are in two halves, balanced as in ZIGZAG when causal, each against the keys up to
    its own end. The gathered chunks are contiguous ones: putting them in order is not timed.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    q, k, v = (problem.shard(name, rank, device)[0] for name in "qkv")
    kv = torch.stack([k, v]).transpose(1, 2).contiguous()  # [2, chunk, H, D]
    gathered = torch.empty(problem.ranks, *kv.shape, dtype=kv.dtype, device=device)
    half = problem.chunk // 2
    starts = (rank * half, (2 * problem.ranks - 1 - rank) * half)

    def call() -> Any:
        dist.all_gather_into_tensor(gathered, kv)
        # [ranks, 2, chunk, H, D] to two of [1, H, ranks * chunk, D].
        keys, values = gathered.permute(1, 3, 0, 2, 4).flatten(2, 3)[:, None]
        if not problem.causal:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return _sdpa(q[None], keys, values)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return [
                _sdpa(
                    q[None, :, number * half : (number + 1) * half],
                    keys[:, :, : start + half],
                    values[:, :, : start + half],
                    attn_mask=causal_lower_right(half, start + half),
                )
                for number, start in enumerate(starts)
            ]

    return call


@contextlib.contextmanager
def context_parallel(problem: Problem, mesh: Any) -> Any:
    """PyTorch's `context_parallel` in the same processes; yields its call.

    K and V have the heads of Q: it does not do GQA in every release.
    """
    from torch.distributed.tensor.experimental import context_parallel as theirs

    device = torch.device("cuda", torch.cuda.current_device())
    q, k, v = (problem.whole(name, device) for name in "qkv")
    group = problem.heads // problem.kv_heads
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    buffers = [q, k, v]
    with (
        sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]),
        theirs(mesh, buffers=buffers, buffer_seq_dims=[2, 2, 2], no_restore_buffers=set(buffers)),
    ):
        yield lambda: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=problem.causal
        )


def _sdpa(q: Any, k: Any, v: Any, attn_mask: Any = None) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_mask, enable_gqa=q.shape[1] != k.shape[1]
    )
