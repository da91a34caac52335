"""Refuses forward-mode derivatives of this package's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from baracuda_kernels.errors import UnsupportedError


class _Library(torch.library.Library):
    """A library of operators whose autograd kernels refuse tangents.

    PyTorch's own kernels for a registered formula would drop a tangent, and the derivative would be
    0. Compiled and exported code, and ``torch.func.jvp`` of it, meet no other check.
    """

    def impl(self, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> Any:
        if dispatch_key == "Autograd":
            fn = _refusing_tangents(op_name, fn)
        base: Any = super()
        return base.impl(op_name, fn, dispatch_key, **options)


def library() -> Any:
    """A part of this package's library of operators."""
    kind: Any = _Library
    return kind("baracuda", "FRAGMENT")


def _refusing_tangents(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def checked(keyset: Any, *args: Any, **options: Any) -> Any:
        refuse_tangents(name, *args)
        return kernel(keyset, *args, **options)

    return checked


def refuse_tangents(call: str, *args: Any) -> None:
    """UnsupportedError if an argument is a tensor that has a tangent."""
    if forward_ad._current_level < 0:
        return
    for x in args:
        if isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            raise UnsupportedError(
                f"{call}: got a tensor that has a tangent, must have none: forward-mode derivatives "
                "are not built"
            )
