"""Inputs that every rank can make for every other, so that checking needs no communication."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

import baracuda_kernels as bk

_SEEDS = {"q": 0, "k": 1, "v": 2}


@dataclass(frozen=True)
class Problem:
    """One ring: bf16, batch 1, `chunk` rows of queries and of keys on each of `ranks`."""

    ranks: int
    chunk: int
    heads: int
    kv_heads: int
    head_dim: int
    layout: str
    causal: bool

    def params(self) -> dict[str, Any]:
        """For a row of results."""
        return {"dtype": "bf16", **asdict(self)}

    @property
    def flops(self) -> float:
        """Of all ranks together."""
        total = self.chunk * self.ranks
        return 4.0 * self.heads * total * total * self.head_dim / (2 if self.causal else 1)

    def positions(self, rank: int) -> torch.Tensor:
        """Global positions of a rank's rows."""
        return torch.as_tensor(bk.positions(self.chunk, rank, self.ranks, self.layout))

    def shard(self, name: str, rank: int, device: str | torch.device) -> torch.Tensor:
        """``q``, ``k`` or ``v`` of a rank, [1, H, chunk, D]: the same wherever it is made."""
        generator = torch.Generator(device).manual_seed(3 * rank + _SEEDS[name])
        heads = self.heads if name == "q" else self.kv_heads
        shape = (1, heads, self.chunk, self.head_dim)
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)

    def whole(self, name: str, device: str | torch.device) -> torch.Tensor:
        """``q``, ``k`` or ``v`` of all ranks, [1, H, ranks * chunk, D], in global order."""
        heads = self.heads if name == "q" else self.kv_heads
        shape = (1, heads, self.ranks * self.chunk, self.head_dim)
        out = torch.empty(shape, dtype=torch.bfloat16, device=device)
        for rank in range(self.ranks):
            out[:, :, self.positions(rank).to(device)] = self.shard(name, rank, device)
        return out
