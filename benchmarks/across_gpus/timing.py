"""Interleaved rounds that all ranks walk together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.timing import order, sample

_SAMPLE_MS = 30.0

Around = Callable[[], contextlib.AbstractContextManager[Any]]


def interleaved(
    calls: Mapping[str, Callable[[], Any]], around: Mapping[str, Around], *, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds per call, of the slowest rank, one sample of each call per round.

    Every rank gives the same names in the same order: the calls may be collective. A call named in
    `around` is made inside that context, which is not timed.
    """

    def timed(name: str, repeats: int) -> float:
        with around.get(name, contextlib.nullcontext)():
            return slowest(_sample(calls[name], repeats))

    repeats = {}
    for name in calls:
        timed(name, 1)  # warms up
        repeats[name] = max(1, min(100, round(_SAMPLE_MS / timed(name, 2))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in order(calls, number):
            samples[name].append(timed(name, repeats[name]))
    return samples


def slowest(value: float) -> float:
    """The largest of all ranks' values."""
    most = torch.tensor([value], device="cuda", dtype=torch.float64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most.item()


def fastest(value: float) -> float:
    """The smallest of all ranks' values."""
    return -slowest(-value)


def _sample(call: Callable[[], Any], repeats: int) -> float:
    torch.cuda.synchronize()
    dist.barrier()
    return sample(lambda _: call(), repeats)
