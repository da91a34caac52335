"""Backward calls of rings on a GPU: local ones, and what ranks of other rings are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import baracuda_kernels as bk
from helpers.gradients import Problem
from helpers.inputs import TORCH_DTYPES, torch_qkv
from helpers.ring_gradients import GradientRank, ring_descriptor
from helpers.rings import preference


def gradient_problem(torch: Any, task: dict[str, Any]) -> list[Any]:
    """q, k, v and dy of a whole sequence, the same in every process."""
    q, k, v = torch_qkv("normal", task["dtype"], task["seed"], **task["shape"])
    dy, _, _ = torch_qkv("normal", task["dtype"], task["seed"] + 1, **task["shape"])
    return [q, k, v, dy]


def full_of(torch: Any, dtype: str) -> Callable[..., Any]:
    """Poisoned tensors, for operands of that dtype."""
    operand = getattr(torch, TORCH_DTYPES[dtype])
    kinds = {"operand": operand, "wide": torch.float64 if dtype == "f64" else torch.float32}

    def full(shape: Any, kind: str) -> Any:
        if kind == "bytes":
            return torch.full(tuple(shape), 255, dtype=torch.uint8, device="cuda")
        return torch.full(tuple(shape), math.nan, dtype=kinds[kind], device="cuda")

    return full


class GpuGradients:
    """A local ring on one GPU and all of its ranks' memory, after a forward of one rank."""

    def __init__(self, torch: Any, family: str, dtype: str, x: Problem, ranks: int, *,
                 layout: str = "contiguous", is_causal: bool = False, wide: bool = False) -> None:  # fmt: skip
        self.torch, self.layout = torch, layout
        stream = bk.Stream(torch.cuda.current_stream())
        full = full_of(torch, dtype)
        y, lse = full(x.q.shape, "operand"), full(x.q.shape[:3], "wide")
        forward = bk.RingAttentionPlan.select(
            ring_descriptor(x.q, x.k, is_causal=is_causal), stream, preference(family, dtype)
        )
        alone = bk.LocalCommunicator.ring(1, device=0)
        forward.run(stream, alone[0], bk.RingAttentionArgs(q=x.q, k=x.k, v=x.v, y=y, lse=lse))
        shards = [
            [None] * ranks if a is None else
            [s.contiguous() for s in bk.shard(a, ranks, sequence_layout=layout)]
            for a in (*x, y, lse)
        ]  # fmt: skip
        desc = ring_descriptor(shards[0][0], shards[1][0], layout, is_causal=is_causal)
        self.plan = bk.RingAttentionBackwardPlan.select(desc, stream, preference(family, dtype))
        assert self.plan.family == family
        self.ranks = [
            GradientRank(self.plan, Problem(*given[:5]), *given[5:], ranks, full, wide=wide)
            for given in zip(*shards, strict=True)
        ]
        self.ring = bk.LocalCommunicator.ring(ranks, device=0, timeout=60.0)
        self.args = [rank.args for rank in self.ranks]

    def run(self, **options: Any) -> list[Any]:
        self.ring.run_all(self.torch.cuda.current_stream(), self.plan, self.args, **options)
        return self.gathered()

    def gathered(self) -> list[Any]:
        gathered = zip(*(rank.gradients for rank in self.ranks), strict=True)
        return [bk.unshard(list(of_ranks), sequence_layout=self.layout) for of_ranks in gathered]

    def poison(self) -> None:
        for rank in self.ranks:
            for name in ("dq", "dk", "dv", "scratch", "kv_scratch_a", "kv_scratch_b",
                         "kv_gradient_scratch"):
                if name in rank.held:
                    rank.held[name].view(self.torch.uint8).fill_(255)


def same(torch: Any, family: str, one: Any, other: Any) -> bool:
    """Bit for bit; on tensor cores dq, whose sum has no order, within a rounding or two."""
    if family != "simt":
        near = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}[one[0].dtype]
        torch.testing.assert_close(one[0], other[0], rtol=near, atol=near * float(
            one[0].abs().max()) / 16)  # fmt: skip
        one, other = one[1:], other[1:]
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
