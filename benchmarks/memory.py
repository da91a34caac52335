"""`memory` rows: what a training step of one attention layer takes on a rank, by the number of ranks.

Local rings on one card: each rank's outputs and scratch are what a process of its own would allocate,
the forward's scratch given back before the backward's is taken, as autograd does. Measured by
PyTorch's allocator, and divided by the ranks; inputs not counted.
"""

from __future__ import annotations

from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.calls import scratch
from benchmarks.rows import Row, row
from benchmarks.timing import peak_bytes, stream

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
    step = _Step(desc, ranks)
    peak = peak_bytes(step.run)
    params = {
        "dtype": "bf16", "ranks": ranks, "chunk": chunk, "heads": _HEADS, "kv_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM, "layout": "zigzag", "causal": True, "exchange": "local",
    }  # fmt: skip
    del step
    torch.cuda.empty_cache()
    return row("memory", params, peak / ranks)


class _Step:
    """Forward and backward of a local ring."""

    def __init__(self, desc: Any, ranks: int) -> None:
        self._forward = bk.RingAttentionPlan.select(desc, stream())
        self._backward = bk.RingAttentionBackwardPlan.select(desc, stream())
        self._ring = bk.LocalCommunicator.ring(ranks, device=torch.cuda.current_device())
        self._ranks = ranks
        of = {"dtype": torch.bfloat16, "device": "cuda"}
        self._inputs = [
            [
                torch.randn(1, heads, desc.query_len, desc.head_dim, **of)
                for heads in (_HEADS, _KV_HEADS, _KV_HEADS, _HEADS)
            ]
            for _ in range(ranks)
        ]

    def run(self) -> None:
        saved = self._run_forward()
        self._run_backward(saved)

    def _run_forward(self) -> list[dict[str, torch.Tensor]]:
        saved, args, held = [], [], []
        for q, k, v, _ in self._inputs:
            given = {"y": torch.empty_like(q), "lse": q.new_empty(q.shape[:3], dtype=torch.float32)}
            buffers = self._receive_buffers(q)
            if self._ranks > 1:
                buffers["accumulator_scratch"] = scratch(self._forward.accumulator_scratch_bytes)
            args.append(bk.RingAttentionArgs(q=q, k=k, v=v, **given, **buffers))
            saved.append(given)
            held.append(buffers)
        self._ring.run_all(stream(), self._forward, args)
        return saved

    def _run_backward(self, saved: list[dict[str, torch.Tensor]]) -> None:
        held, args = [], []
        for (q, k, v, dy), given in zip(self._inputs, saved, strict=True):
            written = {n: torch.empty_like(x) for n, x in {"dq": q, "dk": k, "dv": v}.items()}
            written |= self._receive_buffers(q)
            written["scratch"] = scratch(self._backward.scratch_bytes)
            if self._ranks > 1:
                nbytes = self._backward.kv_gradient_scratch_bytes
                written["kv_gradient_scratch"] = scratch(nbytes)
            args.append(bk.RingAttentionBackwardArgs(q=q, k=k, v=v, dy=dy, **given, **written))
            held.append(written)
        self._ring.run_all(stream(), self._backward, args)

    def _receive_buffers(self, q: torch.Tensor) -> dict[str, torch.Tensor]:
        names = ("kv_scratch_a", "kv_scratch_b")[: self._ranks - 1]
        return {name: q.new_empty(self._forward.kv_scratch_elements) for name in names}
