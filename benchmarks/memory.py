"""`memory` rows: what a training step of one attention layer takes on a rank, by the number of ranks.

Local rings on one card: each rank's outputs and scratch are what a process of its own would allocate,
the forward's scratch given back before the backward's is taken, as autograd does. Measured by
PyTorch's allocator, and divided by the ranks; inputs not counted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.across_gpus.problem import Problem
from benchmarks.calls import scratch
from benchmarks.rows import Row, row
from benchmarks.timing import peak_bytes, stream

RANKS = (1, 2, 4, 8)
CHUNKS = (8192, 32768)
_RECEIVED = ("kv_scratch_a", "kv_scratch_b")


def rows() -> list[Row]:
    """All `memory` rows."""
    shape = (32, 8, 128, "zigzag", True)
    return [_row(Problem(ranks, chunk, *shape)) for chunk in CHUNKS for ranks in RANKS]


def _row(x: Problem) -> Row:
    desc, on, device = x.descriptor(), stream(), torch.device("cuda", torch.cuda.current_device())
    plans = bk.RingAttentionPlan.select(desc, on), bk.RingAttentionBackwardPlan.select(desc, on)
    ring = bk.LocalCommunicator.ring(x.ranks, device=device.index)
    inputs = [
        [x.shard(name, rank, device) for name in ("q", "k", "v", "dy")] for rank in range(x.ranks)
    ]
    peak = peak_bytes(functools.partial(_step, *plans, ring, inputs))
    del inputs
    torch.cuda.empty_cache()
    return row("memory", x.params(exchange="local"), peak / x.ranks)


def _step(forward: Any, backward: Any, ring: Any, inputs: list[list[torch.Tensor]]) -> None:
    def buffers(names: Sequence[str] = _RECEIVED, **sizes: int) -> dict[str, torch.Tensor]:
        """A rank's scratch of these bytes, and what it receives K and V in."""
        nbytes = forward.kv_scratch_elements * torch.bfloat16.itemsize
        received = dict.fromkeys(names[: len(inputs) - 1], nbytes)
        found = {name: scratch(size) for name, size in (received | sizes).items()}
        return found | {name: found[name].view(torch.bfloat16) for name in received}

    saved = []
    for q, *_ in inputs:
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        saved.append({"y": torch.empty_like(q), "lse": lse})
    many = len(inputs) > 1
    sizes = {"accumulator_scratch": forward.accumulator_scratch_bytes} if many else {}
    ring.run_all(stream(), forward, [
        bk.RingAttentionArgs(q=q, k=k, v=v, **given, **buffers(**sizes))
        for (q, k, v, _), given in zip(inputs, saved, strict=True)
    ])  # fmt: skip
    sizes = {"kv_gradient_scratch": backward.least_kv_gradient_scratch_bytes()} if many else {}
    received = _RECEIVED if backward.needs_kv_scratch_b else _RECEIVED[:1]
    args = []
    for (q, k, v, dy), given in zip(inputs, saved, strict=True):
        written = {name: torch.empty_like(x) for name, x in {"dq": q, "dk": k, "dv": v}.items()}
        written |= buffers(received, scratch=backward.scratch_bytes, **sizes)
        args.append(bk.RingAttentionBackwardArgs(q=q, k=k, v=v, dy=dy, **given, **written))
    ring.run_all(stream(), backward, args)
