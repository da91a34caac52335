"""Rings of processes of which one fails: the errors of the others, and how soon they come."""

from __future__ import annotations

import signal
import time
from typing import Any, NamedTuple, Self

from .rank_pool import RankPool

RANKS = 4
_LOST = ("NcclTimeoutError", "NcclError")
# case -> the errors with which it may end
CASES = {
    "SIGKILL": _LOST,
    "SIGSTOP": _LOST,
    # NCCL accepts messages of unequal sizes (2.28.9, sockets): plan.validate() finds them.
    "other head_dim": ("InvalidProblemError",),
}
# With the peer exchange a run finds unequal sizes without plan.validate().
ERRORS = {**CASES, "unequal": ("InvalidProblemError",)}
# The cases after which the communicator is healthy again.
HEALTHY = ("other head_dim",)


class Outcome(NamedTuple):
    """The error of a surviving rank, and the seconds after the fault."""

    error: str
    seconds: float
    state: str
    again: str
    message: str


class FaultyRing:
    """A ring of which one rank fails in every run.

    Every run has a new communicator, and new processes in place of those that died. `options` are
    those of :class:`RankPool`.
    """

    def __init__(
        self, ranks: int = RANKS, *, timeout: float = 2.0, restarts: int = 0, **options: Any
    ) -> None:
        """`restarts`: the number of spare processes for the ones that will be killed."""
        self.timeout = timeout
        self._victim = ranks // 2
        self._pool = RankPool(ranks, **options)
        self._pool.prepare(self._victim, restarts)
        self._fresh, self._killed = True, False

    def run(self, case: str, **more: Any) -> list[Outcome]:
        """Let one rank fail, and return the outcome of the others. `more` goes into the task."""
        if self._killed:
            self._pool.restart(self._victim)
        if not self._fresh:
            self._pool.join()
        self._fresh, self._killed = False, case == "SIGKILL"
        task = {"do": "endure", "seconds": self.timeout, "head_dims": {}, **more}
        fault, at = None, time.time()
        if case == "other head_dim":
            task |= {"head_dims": {str(self._victim): 128}, "validate": True}
        elif case == "unequal":  # without validate()
            task |= {"head_dims": {str(self._victim): 128}}
        else:
            number = getattr(signal, case)

            def fault() -> None:
                nonlocal at
                time.sleep(0.7)  # the runs are under way
                at = time.time()
                self._pool.signal(self._victim, number)

        answers = self._pool.run(task, meanwhile=fault, victim=self._victim, seconds=90)
        if case == "SIGSTOP":
            self._pool.signal(self._victim, signal.SIGCONT)
        if case != "SIGKILL":
            self._pool.forget_answer(self._victim)
        return [
            Outcome(a["error"], a["at"] - at, a["state"], a["again"], a.get("message", ""))
            for a in answers
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.close()
