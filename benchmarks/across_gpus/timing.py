"""Interleaved rounds that all ranks walk together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.timing import sample

_SAMPLE_MS = 30.0


def interleaved(calls: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per call, of the slowest rank, one sample of each call per round.

    Every rank gives the same names in the same order: the calls may be collective.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        once = _slowest(_sample(call, 1))
        repeats[name] = max(1, min(100, round(_SAMPLE_MS / once)))
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(_slowest(_sample(calls[name], repeats[name])))
    return samples


def _sample(call: Callable[[], Any], repeats: int) -> float:
    torch.cuda.synchronize()
    dist.barrier()
    return sample(lambda _: call(), repeats)


def _slowest(milliseconds: float) -> float:
    value = torch.tensor([milliseconds], device="cuda")
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value.item()
