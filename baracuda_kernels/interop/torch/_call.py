"""A ring's call as the library takes it: views of addresses, which own nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from baracuda_kernels import TensorRef
from baracuda_kernels.interop.torch import _problem

# Plans, and argument views, that a ring keeps before it begins anew.
_KEPT = 1024


# A call of this rank, all but what needs the other ranks: the plan and its arguments; what the ranks
# compare, on the CPU alone; the outputs; on CUDA what they may have to compare; where messages arrive,
# by argument; and what else the arguments point to, for they own nothing.
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
    """A tensor's address and form, which may outlive it."""
    element = "U8" if x.dtype is torch.uint8 else _problem.ELEMENTS[x.dtype]
    return TensorRef(x.data_ptr(), x.shape, x.stride(), element, device=ordinal)


def keep(cache: dict[Any, Any], key: tuple[Any, ...], value: Any) -> bool:
    """Whether the cache was full, and began anew."""
    full = len(cache) >= _KEPT
    if full:
        cache.clear()
    cache[key] = value
    return full
