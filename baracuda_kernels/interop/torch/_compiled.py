"""Keeps collective calls in compiled code: none is merged, dropped or reordered.

A compiler treats an operator as a function of its operands. If a rank's graph lacks a call that
another rank's graph has, or has two calls in another order, the other ranks wait for ever.

- Not merged: `call_mark` gives every call in the program a different operand.
- Not dropped: the operators are marked as having a side effect, for torch.fx and for Inductor.
- Not reordered: Inductor's scheduler may move calls that no data dependency holds in place. What it
  moves depends on sizes, which may differ between ranks. So each call gets a dependency on the
  previous one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.node import has_side_effect

_LOWERING = "torch._inductor.lowering"
_LAST = "_baracuda_last_call"  # attribute of a graph being lowered: the buffer of its last call

_operators: list[Any] = []
_chained: set[Any] = set()


def keep(*operators: Any) -> None:
    """Keep every call of these operators in compiled code, in program order."""
    for operator in operators:
        has_side_effect(operator)
        _operators.append(operator)


def call_mark(device: torch.device, of_context: bool = False) -> torch.Tensor | None:
    """An empty operand, a new one for each traced call; None in eager code.

    With `of_context` it has two dimensions: the call has the group and layout of a context, and the
    compiler has not seen that they depend on it.
    """
    # No compiler merges two empty tensors: each has its own memory.
    if not torch.compiler.is_compiling():
        return None
    return torch.empty((0, 0) if of_context else 0, device=device)


def chain() -> None:
    """Make Inductor keep the order, if it is loaded. Fake implementations call this function, since
    they run before the graph is lowered."""
    if len(_chained) == len(_operators) or _LOWERING not in sys.modules:
        return
    for operator in _operators:
        if operator not in _chained:
            _chained.add(operator)
            _chain_in_inductor(operator)


def _chain_in_inductor(operator: Any) -> None:
    # These names are private. Without them, only Inductor's scheduler itself may keep the order.
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
