"""Which of the others may stand beside us: those that run here and answer rightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.across_gpus import torch_cp
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.ranks import Contender, interleaved, say, slowest

# Gives the relative error of what a contender's call returned, the worst rank's.
Off = Callable[[Contender, Any], float]


class Others:
    """Chooses them on all ranks of a mesh alike; whose error is beyond `limit` has another answer."""

    def __init__(self, mesh: Any, limit: float) -> None:
        self._mesh, self._limit = mesh, limit
        # PyTorch's `context_parallel` in the form that is fastest, by what `_case` says.
        self._forms: dict[tuple[int, int, bool], torch_cp.Form | None] = {}
        self.errors: dict[str, float] = {}  # of those that were admitted last

    def admitted(
        self, problem: Problem, found: dict[str, Contender], operands: Any, off: Off
    ) -> dict[str, Contender]:
        """Those of `found` that may, and `context_parallel` on these operands."""
        case, rank = _case(problem), self._mesh.get_local_rank()

        def make(form: torch_cp.Form) -> Contender:
            return torch_cp.context_parallel(problem, rank, operands, self._mesh, form)

        if case not in self._forms:
            times = {}
            for form in torch_cp.FORMS:
                other, name = make(form), f"context_parallel ({form})"
                if self._error(name, other, off) is not None:
                    (times[form],) = interleaved({name: other}, rounds=1)[name]
                    say(f"{name}: {times[form]:.3f} ms")
            self._forms[case] = min(times, key=times.__getitem__, default=None)
        if (best := self._forms[case]) is not None:
            found = {**found, "context_parallel": make(best)}
        errors = {name: self._error(name, other, off) for name, other in found.items()}
        self.errors = {name: x for name, x in errors.items() if x is not None}
        return {name: found[name] for name in self.errors}

    def form(self, problem: Problem) -> str:
        """Its name, or "absent"."""
        return str(self._forms[_case(problem)] or "absent")

    def _error(self, name: str, other: Contender, off: Off) -> float | None:
        """That of another that runs on every rank and answers rightly; if not, why is said."""
        trouble, found = "", None
        try:
            with other.around():
                found = other.call()
                torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on without it
            trouble = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        if slowest(float(bool(trouble))):
            say(f"absent: {name}: {trouble or 'failed on another rank'}")
            return None
        relative = off(other, found)
        if not relative <= self._limit:
            say(f"absent: {name}: its relative error is {relative:.2e}")
            return None
        return relative


def _case(problem: Problem) -> tuple[int, int, bool]:
    return problem.heads, problem.chunk, problem.causal
