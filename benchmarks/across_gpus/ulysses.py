"""The same attention as DeepSpeed-Ulysses shares it (https://arxiv.org/abs/2309.14509): by heads.

An all-to-all gives every rank all rows of its share of the heads, our kernel computes them in one
call, and another all-to-all brings the results back. It needs as many K/V heads as ranks, or a
multiple of that.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from benchmarks.across_gpus.contenders import one_gpu
from benchmarks.across_gpus.problem import Problem, Whole
from benchmarks.across_gpus.ranks import Contender


def ulysses(
    problem: Problem, rank: int, whole: Whole, dy: torch.Tensor | None = None
) -> dict[str, Contender]:
    """By its name; none where the heads cannot be shared.

    With `dy` a call is a step, which gives dq, dk and dv.
    """
    if problem.kv_heads % problem.ranks:
        return {}
    operands = [*whole] if dy is None else [*whole, dy]
    mine = slice(rank * problem.chunk, (rank + 1) * problem.chunk)
    shards = [x[:, :, mine].contiguous() for x in operands]
    heads = [x[:, : x.shape[1] // problem.ranks].clone() for x in operands]  # all rows of them
    y = torch.empty_like(heads[0])
    one = one_gpu(problem, Whole(*heads[:3]), heads[3] if dy is not None else None, y)

    def call() -> list[torch.Tensor]:
        for shard, of_heads in zip(shards, heads, strict=True):
            _gather_rows(problem, shard, of_heads)
        found = one.call()
        rows = _gather_heads(problem, y)
        return [rows] if dy is None else [_gather_heads(problem, x) for x in found]

    return {"ulysses": Contender(call, problem.positions(rank, "contiguous"))}


def _gather_rows(problem: Problem, shard: torch.Tensor, of_heads: torch.Tensor) -> None:
    """[1, H, chunk, D] of every rank to [1, H / ranks, rows, D]."""
    parts = shard.view(problem.ranks, -1, *shard.shape[2:])
    found = torch.empty_like(parts)
    dist.all_to_all_single(found, parts)
    of_heads.view(found.shape[1], problem.ranks, *shard.shape[2:]).copy_(found.transpose(0, 1))


def _gather_heads(problem: Problem, of_heads: torch.Tensor) -> torch.Tensor:
    """[1, H / ranks, rows, D] of every rank to [1, H, chunk, D]."""
    _, few, _, dim = of_heads.shape
    parts = of_heads.view(few, problem.ranks, problem.chunk, dim).transpose(0, 1).contiguous()
    found = torch.empty_like(parts)
    dist.all_to_all_single(found, parts)
    return found.view(1, -1, problem.chunk, dim)
