"""What a row's params say, for code that does without torch."""

from __future__ import annotations

from typing import Any

from benchmarks.rows import Row

_LAYOUTS = ("zigzag", "striped", "contiguous")


def flops(params: dict[str, Any]) -> float:
    """Floating-point operations of all ranks together."""
    total = params["chunk"] * params["ranks"]
    every = 4.0 * params["heads"] * total * total * params["head_dim"]
    return every / 2 if params["causal"] else every


def problem_of(row: Row) -> tuple[Any, ...]:
    """(ranks, chunk, layout, causal)."""
    p = row["params"]
    return p["ranks"], p["chunk"], p["layout"], p["causal"]


def order(row: Row) -> tuple[Any, ...]:
    """Sorts rows as tables have them: balanced layouts and causal problems first."""
    ranks, chunk, layout, causal = problem_of(row)
    return ranks, chunk, _LAYOUTS.index(layout), not causal
