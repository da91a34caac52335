"""Which of the others may stand beside us: those that run here and answer rightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.across_gpus import torch_cp
from benchmarks.across_gpus.contenders import Contender
from benchmarks.across_gpus.timing import interleaved, slowest


def say(rank: int, text: str) -> None:
    """Print it on one rank."""
    if rank == 0:
        print(text, flush=True)


def admitted(
    rank: int, name: str, other: Contender, off: Callable[[Contender, Any], float], limit: float
) -> bool:
    """Whether another runs on every rank and answers rightly; if not, why is said aloud.

    `off` gives the relative error of what its call returned, the worst rank's; beyond `limit` it is
    another answer.
    """
    trouble, found = "", None
    try:
        with other.around():
            found = other.call()
            torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - whatever it is, the others go on without it
        trouble = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if slowest(float(bool(trouble))):
        say(rank, f"absent: {name}: {trouble or 'failed on another rank'}")
        return False
    relative = off(other, found)
    if not relative <= limit:
        say(rank, f"absent: {name}: its relative error is {relative:.2e}")
        return False
    return True


def time_of(name: str, other: Contender) -> float:
    """Milliseconds of one call, of the slowest rank."""
    return interleaved({name: other.call}, {name: other.around}, rounds=1)[name][0]


def fastest_form(
    rank: int,
    make: Callable[[torch_cp.Form], Contender],
    off: Callable[[Contender, Any], float],
    limit: float,
) -> tuple[torch_cp.Form | None, Contender | None]:
    """PyTorch's `context_parallel` in the form that is fastest here, of those that are admitted."""
    times: dict[torch_cp.Form, float] = {}
    made: dict[torch_cp.Form, Contender] = {}
    for form in torch_cp.FORMS:
        other, name = make(form), f"context_parallel ({form})"
        if admitted(rank, name, other, off, limit):
            times[form], made[form] = time_of(name, other), other
            say(rank, f"{name}: {times[form]:.3f} ms")
    best = min(times, key=times.__getitem__) if times else None
    return best, None if best is None else made[best]
