"""`memory` rows: what a training step of one attention layer takes on a rank, by the number of ranks.

Local rings on one card: each rank's outputs and scratch are what a process of its own would allocate,
the forward's scratch given back before the backward's is taken, as autograd does. Measured by
PyTorch's allocator, and divided by the ranks; inputs not counted.
"""

from __future__ import annotations

from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.rows import Row, row
from benchmarks.timing import not_of_torch

RANKS = (1, 2, 4, 8)
CHUNKS = (8192, 32768)
_HEADS, _KV_HEADS, _HEAD_DIM = 32, 8, 128


def rows() -> list[Row]:
    """All `memory` rows."""
    return [_row(ranks, chunk) for chunk in CHUNKS for ranks in RANKS]


def _row(ranks: int, chunk: int) -> Row:
    desc = bk.RingAttentionDescriptor(
        1, _HEADS, chunk, chunk, _HEAD_DIM, is_causal=True, element=bk.ElementKind.BF16,
        num_kv_heads=_KV_HEADS, sequence_layout="zigzag",
    )  # fmt: skip
    stream = bk.Stream(torch.cuda.current_stream())
    step = _Step(desc, stream, ranks)
    torch.cuda.synchronize()
    before, others = torch.cuda.memory_allocated(), not_of_torch()
    torch.cuda.reset_peak_memory_stats()
    step.run(stream)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before + max(not_of_torch() - others, 0)
    params = {
        "dtype": "bf16", "ranks": ranks, "chunk": chunk, "heads": _HEADS, "kv_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM, "layout": "zigzag", "causal": True, "exchange": "local",
    }  # fmt: skip
    del step
    torch.cuda.empty_cache()
    return row("memory", params, peak / ranks)


class _Step:
    """Forward and backward of a local ring."""

    def __init__(self, desc: Any, stream: bk.Stream, ranks: int) -> None:
        self._forward = bk.RingAttentionPlan.select(desc, stream)
        self._backward = bk.RingAttentionBackwardPlan.select(desc, stream)
        self._ring = bk.LocalCommunicator.ring(ranks, device=torch.cuda.current_device())
        self._ranks = ranks
        shapes = ((desc.num_heads,), (desc.num_kv_heads,), (desc.num_kv_heads,), (desc.num_heads,))
        self._inputs = [
            [
                torch.randn(
                    1, *heads, desc.query_len, desc.head_dim, dtype=torch.bfloat16, device="cuda"
                )
                for heads in shapes
            ]
            for _ in range(ranks)
        ]

    def run(self, stream: bk.Stream) -> None:
        saved = self._run_forward(stream)
        self._run_backward(stream, saved)

    def _run_forward(self, stream: bk.Stream) -> list[tuple[torch.Tensor, torch.Tensor]]:
        saved, args, held = [], [], []
        for q, k, v, _ in self._inputs:
            y, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
            scratch = self._receive_buffers(q)
            if self._ranks > 1:
                nbytes = self._forward.accumulator_scratch_bytes
                scratch["accumulator_scratch"] = q.new_empty(nbytes, dtype=torch.uint8)
            args.append(bk.RingAttentionArgs(q=q, k=k, v=v, y=y, lse=lse, **scratch))
            saved.append((y, lse))
            held.append(scratch)
        self._ring.run_all(stream, self._forward, args)
        return saved

    def _run_backward(
        self, stream: bk.Stream, saved: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        held, args = [], []
        for (q, k, v, dy), (y, lse) in zip(self._inputs, saved, strict=True):
            gradients = {"dq": q, "dk": k, "dv": v}
            written = {name: torch.empty_like(x) for name, x in gradients.items()}
            written |= self._receive_buffers(q)
            sizes = {"scratch": self._backward.scratch_bytes}
            if self._ranks > 1:
                sizes["kv_gradient_scratch"] = self._backward.kv_gradient_scratch_bytes
            written |= {n: q.new_empty(size, dtype=torch.uint8) for n, size in sizes.items()}
            args.append(bk.RingAttentionBackwardArgs(q=q, k=k, v=v, y=y, dy=dy, lse=lse, **written))
            held.append(written)
        self._ring.run_all(stream, self._backward, args)

    def _receive_buffers(self, q: torch.Tensor) -> dict[str, torch.Tensor]:
        names = ("kv_scratch_a", "kv_scratch_b")[: self._ranks - 1]
        return {name: q.new_empty(self._forward.kv_scratch_elements) for name in names}
