"""What rings of one host are to reach, and whether rows of `benchmarks.exchange` do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

# Rows a GPU -> (goal, floor) of % of ideal, captured, by mask.
_OF_IDEAL = {
    True: {1024: (55, 48), 2048: (78, 70), 4096: (90, 84), 8192: (97, 94), 32768: (100, 98)},
    False: {1024: (70, 63), 2048: (82, 74), 4096: (92, 86), 8192: (97, 94), 32768: (97, 95)},
}
_OF_IDEAL_OF_FOUR = {(True, 8192): (96, 92)}
_GIGABYTES = (330, 300)  # of 33.5 MB, beside the steps
_OVER_STEPS = {2048: (1.05, 1.08)}  # the run over the rank's own steps, eager and captured
_OVER_STEPS_BEYOND = (1.02, 1.04)
_OVER_EAGER = (1.01, 1.03)  # captured, from 4096 rows on
_OVER_PLAN = (1.02, 1.04)  # PyTorch's op, from 4096 rows on
_CONTEXT_PARALLEL = {(True, 8192): (1.37, 1.33), (False, 8192): (1.22, 1.19)}
_HOP_BYTES = 33_554_432


class Verdict(NamedTuple):
    """One figure beside its goal and its floor, which are the most where they rise."""

    what: str
    found: float
    goal: float
    floor: float

    @property
    def word(self) -> str:
        """"goal", "floor" or "BELOW"."""
        sign = 1 if self.goal >= self.floor else -1
        if sign * self.found >= sign * self.goal:
            return "goal"
        return "floor" if sign * self.found >= sign * self.floor else "BELOW"

    def __str__(self) -> str:
        figures = f"{self.found:8.3f}  goal {self.goal:g}  floor {self.floor:g}"
        return f"{self.what:56} {figures:36} {self.word}"


def verdicts(rows: Iterable[dict[str, Any]]) -> list[Verdict]:
    """Every figure of these rows that has a goal, in their order."""
    found = []
    for row in rows:
        of_row = _HOPS if row["name"] == "exchange" else _RUNS
        found += [verdict for judge in of_row for verdict in judge(row)]
    return found


def _named(row: dict[str, Any], text: str) -> str:
    p = row["params"]
    mask = "causal" if p["causal"] else "full"
    return f"P {p['ranks']} {p['chunk']:6} {mask:6} {p['way']}: {text}"


def _ratio(row: dict[str, Any], peer: str) -> float:
    return row["ours"] / row["peers"][peer]


def _hop(row: dict[str, Any]) -> list[Verdict]:
    if row["params"]["bytes"] != _HOP_BYTES or row["params"]["exchange"] != "peer":
        return []
    return [Verdict(_named(row, "GB/s each way"), row["ours"], *_GIGABYTES)]


def _is_run(row: dict[str, Any], what: str) -> bool:
    return row["params"].get("what") == what


def _of_ideal(row: dict[str, Any]) -> list[Verdict]:
    p = row["params"]
    if not _is_run(row, "graph"):
        return []
    case = {2: _OF_IDEAL[p["causal"]].get(p["chunk"]),
            4: _OF_IDEAL_OF_FOUR.get((p["causal"], p["chunk"]))}.get(p["ranks"])  # fmt: skip
    percent = 100 / _ratio(row, "ideal")
    return [] if case is None else [Verdict(_named(row, "graph % of ideal"), percent, *case)]


def _over_steps(row: dict[str, Any]) -> list[Verdict]:
    if row["params"].get("what") not in ("eager", "graph") or row["params"]["chunk"] < 2048:
        return []
    limits = _OVER_STEPS.get(row["params"]["chunk"], _OVER_STEPS_BEYOND)
    return [Verdict(_named(row, f"{row['params']['what']} over its own steps"), _ratio(row, "steps"), *limits)]


def _over_eager(row: dict[str, Any]) -> list[Verdict]:
    if not _is_run(row, "graph") or row["params"]["chunk"] < 4096:
        return []
    return [Verdict(_named(row, "graph over eager"), _ratio(row, "eager"), *_OVER_EAGER)]


def _over_plan(row: dict[str, Any]) -> list[Verdict]:
    if not _is_run(row, "torch op") or row["params"]["chunk"] < 4096:
        return []
    return [Verdict(_named(row, "torch op over the plan"), _ratio(row, "eager"), *_OVER_PLAN)]


def _over_context_parallel(row: dict[str, Any]) -> list[Verdict]:
    p = row["params"]
    case = _CONTEXT_PARALLEL.get((p["causal"], p["chunk"]))
    if not _is_run(row, "context_parallel") or p["ranks"] != 2 or case is None:
        return []
    return [Verdict(_named(row, "context_parallel over the plan"), _ratio(row, "eager"), *case)]


_HOPS = (_hop,)
_RUNS = (_of_ideal, _over_steps, _over_eager, _over_plan, _over_context_parallel)
