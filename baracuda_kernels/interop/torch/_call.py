"""A ring's call as the library takes it: views of addresses, which own no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from baracuda_kernels import TensorRef
from baracuda_kernels.interop.torch import _problem

# The most plans, and argument views, in a cache of a ring. A full cache is cleared.
_KEPT = 1024


# A call of this rank, before the other ranks are asked: the plan; its arguments; on the CPU the bytes
# that the ranks compare; the outputs; on CUDA the problem, if the ranks must compare it; the receive
# buffers, by argument; and the other tensors that the arguments point to and do not own.
Call = tuple[
    Any,
    Any,
    bytes,
    tuple[torch.Tensor, ...],
    tuple[Any, ...] | None,
    Mapping[str, torch.Tensor],
    tuple[Any, ...],
]


def view_of(x: torch.Tensor, ordinal: int) -> TensorRef:
    """A tensor's address, shape, strides and element. It does not keep the tensor alive."""
    element = "U8" if x.dtype is torch.uint8 else _problem.ELEMENTS[x.dtype]
    return TensorRef(x.data_ptr(), x.shape, x.stride(), element, device=ordinal)


def keep(cache: dict[Any, Any], key: tuple[Any, ...], value: Any) -> bool:
    """Add to a cache. True if it was full and has been cleared."""
    full = len(cache) >= _KEPT
    if full:
        cache.clear()
    cache[key] = value
    return full
