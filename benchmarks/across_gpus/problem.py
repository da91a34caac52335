"""Inputs that every rank can make for every other, so that checking needs no communication."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

import baracuda_kernels as bk
from benchmarks.tables import ring_flops

_SEEDS = {"q": 0, "k": 1, "v": 2}
# Of one call on one GPU.
_LONG_FLOPS = 5e13


class Whole(NamedTuple):
    """q, k and v of all ranks in global order, [1, H, ranks * chunk, D]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


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

    def rounds(self, asked: int) -> int:
        """How many of them: of long calls five are enough."""
        return min(asked, 5) if ring_flops(self.params()) > _LONG_FLOPS else asked

    def positions(self, rank: int, layout: str | None = None) -> torch.Tensor:
        """Global positions of a rank's rows, in the problem's layout or another."""
        return torch.as_tensor(bk.positions(self.chunk, rank, self.ranks, layout or self.layout))

    def shard(self, name: str, rank: int, device: torch.device) -> torch.Tensor:
        """``q``, ``k`` or ``v`` of a rank, [1, H, chunk, D]: the same wherever it is made."""
        generator = torch.Generator(device).manual_seed(3 * rank + _SEEDS[name])
        heads = self.heads if name == "q" else self.kv_heads
        shape = (1, heads, self.chunk, self.head_dim)
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)

    def whole(self, device: torch.device) -> Whole:
        """The inputs of all ranks together."""
        return Whole(*(self._whole(name, device) for name in "qkv"))

    def _whole(self, name: str, device: torch.device) -> torch.Tensor:
        heads = self.heads if name == "q" else self.kv_heads
        shape = (1, heads, self.ranks * self.chunk, self.head_dim)
        out = torch.empty(shape, dtype=torch.bfloat16, device=device)
        for rank in range(self.ranks):
            out[:, :, self.positions(rank).to(device)] = self.shard(name, rank, device)
        return out
