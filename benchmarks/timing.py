"""Times of calls on a GPU: in bursts and sustained, on rotated inputs."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.rounds import in_rounds, settle, summary
from benchmarks.rows import Figures

ROUNDS = 9
SUSTAINED_ROUNDS = 2
# A burst is over before the card's power limit has settled. A sustained window is as long as the swing
# of the clock, and comes after as much of its own work as it takes until the clock no longer is that of
# the contender before (docs/kernel-log/timing.md).
BURST_MS = 15.0
SUSTAINED_MS = 800.0
SUSTAINED_LEAD_MS = 300.0
# Milliseconds that one sample should last at least: long against the event's own resolution.
_SAMPLE_MS = 15.0
# Inputs are rotated over at least this many bytes, so that none is found in the L2 cache.
_ROTATED_BYTES = 256 << 20

Calls = Mapping[str, Callable[[], Any]]


def stream() -> bk.Stream:
    """PyTorch's current stream."""
    return bk.Stream(torch.cuda.current_stream())


def input_sets(make: Callable[[int], Any], bytes_of_one: int) -> list[Any]:
    """Enough random inputs, made by ``make(seed)``, that rotating them defeats the L2 cache."""
    count = min(16, max(2, -(-_ROTATED_BYTES // max(bytes_of_one, 1))))
    return [make(seed) for seed in range(count)]


def rotated(calls: Iterable[Callable[[], Any]]) -> Callable[[], Any]:
    """Makes one of them after the other, each on inputs of its own."""
    turn = itertools.cycle([*calls])  # all are made now
    return lambda: next(turn)()


def all_of(calls: Iterable[Callable[[], Any]]) -> Callable[[], Any]:
    """Makes all of them, each on inputs of its own, and returns what the last one does."""
    every = [*calls]
    return lambda: [call() for call in every][-1]


def captured(call: Callable[[], Any], repeats: int = 1) -> Callable[[], None]:
    """Replays what so many calls enqueue on the current stream, as a CUDA graph."""
    call()  # whatever is lazy in it
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # What other threads do meanwhile, NCCL's and its watchdogs', is no error of the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(repeats):
            call()
    # The graph knows addresses alone: `call` is kept, for what it holds.
    return functools.partial(lambda _: graph.replay(), call)


def interleaved(calls: Calls, *, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Milliseconds per call of each of `calls` by events, one sample a round."""
    return in_rounds(
        calls, lambda name, count: sample(calls[name], count),
        rounds=rounds, milliseconds=_SAMPLE_MS, least=2, most=400,
    )  # fmt: skip


def beside_one_call(sets: list[dict[str, Callable[[], Any]]]) -> Figures:
    """The figures of a row: `ours` of each set beside the fastest of its other calls."""
    found = summary(interleaved({name: rotated(one[name] for one in sets) for name in sets[0]}))
    return {"ours": found["ours"], "peers": {"one_call": min(found["peers"].values())}}


def in_windows(
    calls: Calls, sets: int, ours: Iterable[str] = ("ours",), *, sustained: bool
) -> dict[str, dict[str, Any]]:
    """The figures of a row, `ours` and `peers`, for each of the calls that are ours, in bursts.

    Each of `calls` is one on every of so many sets of inputs; the figures are of one set. With
    `sustained` they have under that name what it is in windows that the power limit has seen.
    """

    def windows(milliseconds: float, rounds: int, lead: float) -> dict[str, list[float]]:
        samples = in_rounds(
            calls, lambda name, count: _window(calls[name], count, round(lead / milliseconds * count)),
            rounds=rounds, milliseconds=milliseconds, least=-(-20 // sets), most=4000,
        )  # fmt: skip
        return {name: [ms / sets for ms in found] for name, found in samples.items()}

    bursts = windows(BURST_MS, ROUNDS, 0.0)
    found: dict[str, dict[str, Any]] = {name: {**summary(bursts, name)} for name in ours}
    if sustained:
        settle(calls, lambda name: _window(calls[name], -(-20 // sets)))
        kept = windows(SUSTAINED_MS, SUSTAINED_ROUNDS, SUSTAINED_LEAD_MS)
        for name, figures in found.items():
            figures["sustained"] = summary(kept, name)
    return found


def _window(call: Callable[[], Any], repeats: int, lead: int = 0) -> float:
    """Milliseconds per call by the host's clock, so that calls of any framework can be among them.

    Before the `repeats` calls that are timed come `lead` others. All calls of either are enqueued,
    then the last one's result (an array of JAX) and the device are waited for.
    """
    _make(call, lead)
    begin = time.perf_counter()
    _make(call, repeats)
    return 1e3 * (time.perf_counter() - begin) / repeats


def _make(call: Callable[[], Any], repeats: int) -> None:
    """Makes so many calls, and waits for them."""
    result: Any = None
    for _ in range(repeats):
        result = call()
    if hasattr(result, "block_until_ready"):
        result.block_until_ready()
    torch.cuda.synchronize()


def sample(
    call: Callable[[], Any], repeats: int, wait: Callable[[], Any] = torch.cuda.synchronize
) -> float:
    """Milliseconds per call, by events; `wait` is called before they are read."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    wait()
    return float(start.elapsed_time(stop)) / repeats


def peak_bytes(call: Callable[[], Any]) -> int:
    """Bytes of the device that a call takes besides what is there, PyTorch's at their peak and what
    others hold after it."""
    torch.cuda.synchronize()
    before, others = torch.cuda.memory_allocated(), not_of_torch()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before + max(not_of_torch() - others, 0)


def not_of_torch() -> int:
    """Bytes of the device that others than PyTorch's allocator hold."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()
