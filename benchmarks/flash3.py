"""FlashAttention-3 as a contender: a current build of it is on PyPI as a package of JAX.

`pip install dew-flash-attn-cu13` (0.3.6: head dims 64, 128, 192 and 256, forward and backward).
Where it is not installed, or the card is not Hopper's, there is no such contender.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch's is the memory


def serves(q: Any) -> bool:
    """Whether it and JAX are here, and it has kernels for this card and these queries."""
    if q.dtype not in (torch.bfloat16, torch.float16) or q.shape[-1] not in (64, 128, 192, 256):
        return False
    found = all(importlib.util.find_spec(name) for name in ("dew_flash_attn", "jax"))
    return bool(found) and torch.cuda.get_device_capability() == (9, 0)


def forward(is_causal: bool, q: Any, k: Any, v: Any) -> Callable[[], Any]:
    """A call on torch's tensors of [B, H, S, D], which it takes as [B, S, H, D]."""
    attention, arrays = _attention(is_causal), _arrays(q, k, v)
    return lambda: attention(*arrays)


def backward(is_causal: bool, q: Any, k: Any, v: Any, dy: Any) -> Callable[[], Any]:
    """A call that gives the last of dq, dk, dv, [B, S, H, D], from residuals made here."""
    import jax

    *operands, cotangent = _arrays(q, k, v, dy)
    _, pull = jax.jit(lambda *x: jax.vjp(_attention(is_causal), *x))(*operands)
    pulled = _pull()
    return lambda: pulled(pull, cotangent)[-1]


@functools.cache
def _pull() -> Any:
    import jax

    return jax.jit(lambda pull, cotangent: pull(cotangent))


@functools.cache
def _attention(is_causal: bool) -> Any:
    import dew_flash_attn
    import jax

    return jax.jit(functools.partial(dew_flash_attn.flash_mha, is_causal=is_causal))


def _arrays(*tensors: Any) -> list[Any]:
    import jax

    moved = [x.transpose(1, 2).contiguous() for x in tensors]
    torch.cuda.synchronize()
    return [jax.dlpack.from_dlpack(x) for x in moved]
