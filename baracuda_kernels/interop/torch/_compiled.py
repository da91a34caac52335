"""Calls that talk to other ranks, in compiled code: none is merged, dropped or put before another.

A compiler takes an operator for a function of its operands. A rank whose graph has one call less
than another rank's, or two of them in the other order, would leave the others waiting.

- Merged: `call_mark` makes the operands of every call in the program differ.
- Dropped: the operators have a side effect, for torch.fx and for Inductor's scheduler.
- Reordered: Inductor's scheduler may move what no data holds in place, and decides by sizes, which
  may differ in a rank that compiles alone. Each call is made to follow the one before it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.node import has_side_effect

_LOWERING = "torch._inductor.lowering"
_LAST = "_baracuda_last_call"  # of a graph that is being lowered: the name of its buffer

_operators: list[Any] = []
_chained: set[Any] = set()


def keep(*operators: Any) -> None:
    """Keep every call of these operators in compiled code, in its place among the others."""
    for operator in operators:
        has_side_effect(operator)
        _operators.append(operator)


def call_mark(device: torch.device) -> torch.Tensor | None:
    """An operand without elements, another one for each call that is traced; None in eager code."""
    # No compiler merges two empty tensors: each is memory of its own.
    return torch.empty(0, device=device) if torch.compiler.is_compiling() else None


def chain() -> None:
    """Tell Inductor, where it is loaded, to keep the order. Fake implementations call it: they run
    before the graph is lowered."""
    if len(_chained) == len(_operators) or _LOWERING not in sys.modules:
        return
    for operator in _operators:
        if operator not in _chained:
            _chained.add(operator)
            _chain_in_inductor(operator)


def _chain_in_inductor(operator: Any) -> None:
    # Private names: where this torch has others, its scheduler keeps the order as far as it does
    # by itself.
    from torch._inductor import lowering
    from torch._inductor.virtualized import V

    names = ("make_fallback", "tag_to_layout_constraint", "lowerings")
    if not all(hasattr(lowering, name) for name in names):
        return
    parts = vars(lowering)
    if operator not in parts["lowerings"]:
        constraint = parts["tag_to_layout_constraint"](torch.Tag.needs_fixed_stride_order)
        parts["make_fallback"](operator, constraint)
    fallback: Callable[..., Any] = parts["lowerings"][operator]

    def lower(*args: Any, **kwargs: Any) -> Any:
        before = len(V.graph.operations)
        result = fallback(*args, **kwargs)
        follows = getattr(V.graph, "additional_star_deps", None)
        calls: list[Any] = V.graph.operations[before:]
        for call in calls:
            if follows is None or getattr(call, "op_overload", None) is not operator:
                continue
            previous = vars(V.graph).get(_LAST)
            if previous is not None:
                follows[call.get_operation_name()].add(previous)
            setattr(V.graph, _LAST, call.get_name())
        return result

    parts["lowerings"][operator] = lower
