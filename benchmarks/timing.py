"""Fair timing on a GPU: interleaved rounds, rotated inputs, medians of ratios."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

ROUNDS = 9
# Milliseconds that one sample should last at least: long against the event's own resolution.
_SAMPLE_MS = 15.0
# Inputs are rotated over at least this many bytes, so that none is found in the L2 cache.
_ROTATED_BYTES = 256 << 20


_Name = TypeVar("_Name")


def order(names: Iterable[_Name], number: int) -> list[_Name]:
    """The order of a round, another one in each: a card's clock follows its power, and a call gains
    or loses some percent by what ran before it. The same for every process."""
    shuffled = list(names)
    random.Random(number).shuffle(shuffled)
    return shuffled


def input_sets(make: Callable[[int], Any], bytes_of_one: int) -> list[Any]:
    """Enough random inputs, made by ``make(seed)``, that rotating them defeats the L2 cache."""
    count = min(16, max(2, -(-_ROTATED_BYTES // max(bytes_of_one, 1))))
    return [make(seed) for seed in range(count)]


def captured(call: Callable[[], Any]) -> Callable[[], None]:
    """Replays what ``call`` enqueues on the current stream, as a CUDA graph."""
    call()  # whatever is lazy in it
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # What other threads do meanwhile, NCCL's and its watchdogs', is no error of the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    # The graph knows addresses alone: `call` is kept, for what it holds.
    return lambda call=call: graph.replay()


def interleaved(
    calls: dict[str, Callable[[int], Any]], *, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Milliseconds per call of each of `calls`, one sample per round, in turn (see `order`).

    A call gets the number of the input set to use.
    """
    repeats = {}
    for name, call in calls.items():
        call(0)
        torch.cuda.synchronize()
        repeats[name] = max(2, min(400, round(_SAMPLE_MS / max(sample(call, 3), 1e-3))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in order(calls, number):
            samples[name].append(sample(calls[name], repeats[name]))
    return samples


def summary(samples: dict[str, list[float]], ours: str = "ours") -> tuple[float, dict[str, float]]:
    """(our median, peers). A peer's value is our median times the median of its ratios to ours.

    Ratios are taken within a round, where both ran at the same clocks; so ``peer / ours`` of a row
    is the median of ratios.
    """
    mine = statistics.median(samples[ours])
    peers = {}
    for name, theirs in samples.items():
        if name != ours:
            ratios = [b / a for a, b in zip(samples[ours], theirs, strict=True)]
            peers[name] = mine * statistics.median(ratios)
    return mine, peers


def sample(call: Callable[[int], Any], repeats: int) -> float:
    """Milliseconds per call, by events; a call gets its number."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for i in range(repeats):
        call(i)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / repeats
