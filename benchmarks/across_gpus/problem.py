"""Inputs that every rank can make for every other, so that checking needs no communication."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

import baracuda_kernels as bk
from benchmarks.rows import RingShape
from benchmarks.tables import ring_flops

# Of one call on one GPU.
_LONG_FLOPS = 5e13


class Whole(NamedTuple):
    """q, k and v of all ranks in global order, [1, H, ranks * chunk, D]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True)
class Problem(RingShape):
    """A ring whose inputs any rank makes, and what all ranks agree on."""

    def rounds(self, asked: int) -> int:
        """How many of them: of long calls five are enough."""
        return min(asked, 5) if ring_flops(self.params()) > _LONG_FLOPS else asked

    def descriptor(
        self, queries: int | None = None, keys: int | None = None, layout: str | None = None
    ) -> bk.RingAttentionDescriptor:
        """Of a rank; or of one with other rows."""
        return bk.RingAttentionDescriptor(
            1, self.heads, queries or self.chunk, keys or self.chunk, self.head_dim,
            is_causal=self.causal, element=bk.ElementKind.BF16, num_kv_heads=self.kv_heads,
            sequence_layout=layout or self.layout,
        )  # fmt: skip

    @property
    def balanced(self) -> str:
        """The layout in which others share it out."""
        return "zigzag" if self.causal else "contiguous"

    def positions(self, rank: int, layout: str | None = None) -> torch.Tensor:
        """Global positions of a rank's rows, in the problem's layout or another."""
        return torch.as_tensor(bk.positions(self.chunk, rank, self.ranks, layout or self.layout))

    def shard(self, name: str, rank: int, device: torch.device) -> torch.Tensor:
        """A rank's "q", "k", "v" or "dy", [1, H, chunk, D]: the same wherever it is made."""
        names = ("q", "k", "v", "dy")
        seed = len(names) * rank + names.index(name)
        heads = self.kv_heads if name in ("k", "v") else self.heads
        shape, generator = (1, heads, self.chunk, self.head_dim), torch.Generator(device)
        drawn = torch.randn(shape, generator=generator.manual_seed(seed), device=device)
        return drawn.to(torch.bfloat16)

    def whole(self, device: torch.device) -> Whole:
        """The inputs of all ranks together."""
        return Whole(*(self.gathered(name, device) for name in "qkv"))

    def gathered(self, name: str, device: torch.device) -> torch.Tensor:
        """What all ranks have of one name, [1, H, ranks * chunk, D]."""
        shards = [self.shard(name, rank, device) for rank in range(self.ranks)]
        return bk.unshard(shards, sequence_layout=self.layout)
