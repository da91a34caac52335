"""Fair comparisons: calls by turns, and the medians of their ratios within a round."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from benchmarks.rows import Figures

_Name = TypeVar("_Name")
# A card's clock swings for 5 to 7 seconds after a pause (docs/kernel-log/timing.md). Bursts have come
# before this, and the first contender has a lead.
_SETTLING_SECONDS = 3.0


def order(names: Iterable[_Name], number: int) -> list[_Name]:
    """The order of round `number`, from 0. The same for every process.

    A card's clock follows its power, and a call gains or loses some percent by what ran before it.
    So these are the rows of a Williams square (https://doi.org/10.1071/CH9490149): in as many rounds
    as there are names each name comes first once, and follows each other name once; if their number
    is odd, twice in twice as many rounds.
    """
    every = list(names)
    turns, odd = len(every), len(every) % 2
    at = [i // 2 if i % 2 == 0 else turns - 1 - i // 2 for i in range(turns)]
    found = [every[(i + number) % turns] for i in at]
    return found[::-1] if odd and number // turns % 2 else found


def settle(names: Iterable[_Name], work: Callable[[_Name], Any]) -> None:
    """Does ``work(name)`` for each of `names`, by turns, until the card's clock has settled.

    After a pause the power limit first lets the clock rise, and then lets it swing for seconds.
    """
    turn, end = itertools.cycle([*names]), time.perf_counter() + _SETTLING_SECONDS
    while time.perf_counter() < end:
        work(next(turn))


def in_rounds(
    names: Iterable[str],
    measure: Callable[[str, int], float],
    *,
    rounds: int,
    milliseconds: float,
    least: int,
    most: int,
) -> dict[str, list[float]]:
    """Milliseconds per call of each of `names`, one sample a round, in turn (see `order`).

    ``measure(name, calls)`` gives them for that many calls. A sample has as many calls as last
    about `milliseconds`, from `least` to `most`.
    """
    repeats = {}
    for name in names:
        measure(name, 2)  # whatever is lazy in it
        of_one = max(measure(name, 3), 1e-3)
        repeats[name] = max(least, min(most, round(milliseconds / of_one)))
    samples: dict[str, list[float]] = {name: [] for name in repeats}
    for number in range(rounds):
        for name in order(repeats, number):
            samples[name].append(measure(name, repeats[name]))
    return samples


def summary(samples: dict[str, list[float]], ours: str = "ours") -> Figures:
    """Our median, and for a peer that times the median of its ratios to ours.

    Ratios are taken within a round, where both ran at the same clocks; so ``peer / ours`` of a row
    is the median of ratios.
    """
    mine = statistics.median(samples[ours])
    peers = {}
    for name, theirs in samples.items():
        if name != ours:
            ratios = [b / a for a, b in zip(samples[ours], theirs, strict=True)]
            peers[name] = mine * statistics.median(ratios)
    return {"ours": mine, "peers": peers}
