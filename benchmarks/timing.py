"""Fair timing on a GPU: interleaved rounds, rotated inputs, medians of ratios."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from benchmarks.rows import Figures

ROUNDS = 9
SUSTAINED_ROUNDS = 3
# A burst is over before the card's power limit has settled; a sustained window is not.
BURST_MS = 15.0
SUSTAINED_MS = 300.0
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


def windows(
    calls: dict[str, Callable[[int], Any]], *, milliseconds: float, rounds: int
) -> dict[str, list[float]]:
    """As `interleaved`, by the host's clock, so that calls of any framework can be among them.

    A sample is a window of about `milliseconds`, of at least 20 calls: all are enqueued, then the
    last one's result (an array of JAX) and the device are waited for.
    """
    repeats = {}
    for name, call in calls.items():
        _window(call, 2)  # whatever is lazy in it
        repeats[name] = max(20, min(4000, round(milliseconds / max(_window(call, 5), 1e-3))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in order(calls, number):
            samples[name].append(_window(calls[name], repeats[name]))
    return samples


def beside_one_call(sets: list[dict[str, Callable[[], Any]]]) -> Figures:
    """The figures of a row: `ours` of each set beside the fastest of its other calls."""
    calls = {name: lambda i, name=name: sets[i % len(sets)][name]() for name in sets[0]}
    ours, peers = summary(interleaved(calls))
    return {"ours": ours, "peers": {"one_call": min(peers.values())}}


def in_bursts(
    calls: dict[str, Callable[[int], Any]], ours: Iterable[str] = ("ours",)
) -> dict[str, Figures]:
    """The figures of a row, `ours` and `peers`, for each of the calls that are ours."""
    samples = windows(calls, milliseconds=BURST_MS, rounds=ROUNDS)
    return {name: _figures(samples, name) for name in ours}


def sustained(
    calls: dict[str, Callable[[int], Any]], ours: Iterable[str] = ("ours",)
) -> dict[str, dict[str, Any]]:
    """The same, and under `sustained` again what it is in windows that the power limit has seen."""
    bursts = in_bursts(calls, ours)
    samples = windows(calls, milliseconds=SUSTAINED_MS, rounds=SUSTAINED_ROUNDS)
    return {name: {**bursts[name], "sustained": _figures(samples, name)} for name in bursts}


def _figures(samples: dict[str, list[float]], ours: str) -> Figures:
    mine, peers = summary(samples, ours)
    return {"ours": mine, "peers": peers}


def _window(call: Callable[[int], Any], repeats: int) -> float:
    """Milliseconds per call, by the host's clock."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for i in range(repeats):
        result = call(i)
    if hasattr(result, "block_until_ready"):
        result.block_until_ready()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin) / repeats


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


def not_of_torch() -> int:
    """Bytes of the device that others than PyTorch's allocator hold."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()
