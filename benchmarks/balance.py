"""`balance` rows: how evenly a causal ring's work lies on its ranks, each rank's steps timed alone.

The page says what the two figures are; their peer is the contiguous layout's. A step is repeated as
a ring repeats steps: each after the first follows the one before, and may start while it ends.

Both are timed as in continuous use. A card's clock follows its power within some 0.1 s, and a long
call takes more of that than steps do: just after steps it runs 3 to 5 % faster than on its own.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch

import baracuda_kernels as bk
from benchmarks.calls import Call, Ring, scratch
from benchmarks.peers import available
from benchmarks.rounds import order
from benchmarks.rows import Row, row
from benchmarks.timing import captured, sample

RANKS = 8
# (family, chunk)
PROBLEMS = [("sm90a", 4096), ("sm80", 4096)]
_LAYOUTS = ("contiguous", "zigzag", "striped")
_ROUNDS = 15  # 15 s: the power limit swings within seconds
_REPEATS = {"call": 4, "step": 32}  # in a replay, whose own start must not count
# Replays before the timed ones, and of those: the call's first 0.16 s, and the 0.2 s after (at 28 ms
# each); steps follow other steps.
_REPLAYS = {"call": (6, 8), "step": (1, 1)}


def rows() -> list[Row]:
    """All `balance` rows."""
    return [one for problem in available(PROBLEMS) for one in _rows(*problem)]


def _rows(family: str, chunk: int) -> list[Row]:
    figures = {layout: _figures(family, layout, chunk) for layout in _LAYOUTS}
    of = {"family": family, "ranks": RANKS, "chunk": chunk}
    return [
        row("balance", {**of, "layout": layout, "what": what}, figures[layout][what],
            {"contiguous": figures["contiguous"][what]})
        for what in ("slowest rank", "summed work")
        for layout in _LAYOUTS
    ]  # fmt: skip


def _figures(family: str, layout: str, chunk: int) -> dict[str, float]:
    """Steps are compared as parts of the calls around their round: the card's clocks drift by more than
    what is looked for, and the largest of several is sought, which noise alone would raise."""
    ring = Ring(Call(family, chunk, causal=True), RANKS, layout=layout)
    whole, steps = _whole(family, ring), _steps(ring, layout)
    parts: dict[tuple[int, int], list[float]] = {at: [] for at in steps}
    before = whole()
    for number in range(_ROUNDS):
        times, after = {at: steps[at]() for at in order(steps, number)}, whole()
        for at, taken in times.items():
            parts[at].append(2 * taken / (before + after))
        before = after
    share = {at: statistics.median(of) for at, of in parts.items()}
    summed = sum(share.values())
    lock_step = sum(
        max(part for (_, number), part in share.items() if number == wanted)
        for wanted in range(RANKS)
    )
    return {"slowest rank": lock_step / (summed / RANKS), "summed work": summed}


def _whole(family: str, ring: Ring) -> Callable[[], float]:
    q, k, v = ring.qkv
    plan = Call(family, q.shape[2], causal=True).plan()
    args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=torch.empty_like(q))
    return _repeated(lambda: plan.run(torch.cuda.current_stream(), args), "call")


def _steps(ring: Ring, layout: str) -> dict[tuple[int, int], Callable[[], float]]:
    """Measurements of every rank's every step, by rank and number, where it has any to launch."""
    state = torch.zeros_like(scratch(ring.plan.accumulator_scratch_bytes))
    y = torch.empty_like(ring.shards[0][0])
    # Contiguous: only the chunks up to a rank's own; the other layouts give every rank some of every
    # chunk.
    counts = [rank + 1 if layout == "contiguous" else RANKS for rank in range(RANKS)]
    return {
        (rank, number): _repeated(
            functools.partial(ring.step, rank, number, y, state, steps=steps), "step"
        )
        for rank, steps in enumerate(counts)
        for number in range(steps)
    }


def _repeated(run: Callable[[], Any], what: str) -> Callable[[], float]:
    """A measurement of `run`, a "call" or a "step": milliseconds of one."""
    repeats, (ahead, timed) = _REPEATS[what], _REPLAYS[what]
    replay = captured(run, repeats)

    def milliseconds() -> float:
        for _ in range(ahead):
            replay()
        return sample(replay, timed) / repeats

    return milliseconds
