"""FlashAttention-3 as a contender: a current build of it is on PyPI as a package of JAX.

`pip install dew-flash-attn-cu13` (0.3.6: head dims 64, 128, 192 and 256, forward and backward).
Where it is not installed, or the card is not Hopper's, there is no such contender.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch's is the memory


def serves(q: Any) -> bool:
    """Whether it and JAX are here, and it has kernels for this card and these queries."""
    if q.dtype not in (torch.bfloat16, torch.float16) or q.shape[-1] not in (64, 128, 192, 256):
        return False
    found = all(importlib.util.find_spec(name) for name in ("dew_flash_attn", "jax"))
    return bool(found) and torch.cuda.get_device_capability() == (9, 0)


def forward(is_causal: bool, sets: Iterable[Any]) -> Callable[[], Any]:
    """A call on each set of torch's q, k and v, [B, H, S, D], which it takes as [B, S, H, D].

    They are one program of JAX, so that its dispatch is not what is measured of short calls.
    """
    import jax

    attention, given = _attention(is_causal), [_arrays(*one) for one in sets]
    every = jax.jit(lambda sets: [attention(*one) for one in sets])
    return lambda: every(given)[-1]


def backward(is_causal: bool, sets: Iterable[Any]) -> Callable[[], Any]:
    """The same for gradients, of q, k, v and dy, from residuals made here."""
    import jax

    attention, pulls, cotangents = _attention(is_causal), [], []
    for one in sets:
        *operands, cotangent = _arrays(*one)
        _, pull = jax.jit(lambda *x: jax.vjp(attention, *x))(*operands)
        pulls.append(pull)
        cotangents.append(cotangent)
    every = jax.jit(lambda pulls, given: [pull(x) for pull, x in zip(pulls, given, strict=True)])
    return lambda: every(pulls, cotangents)[-1][-1]


def _attention(is_causal: bool) -> Callable[..., Any]:
    import dew_flash_attn

    return functools.partial(dew_flash_attn.flash_mha, is_causal=is_causal)


def _arrays(*tensors: Any) -> list[Any]:
    import jax

    moved = [x.transpose(1, 2).contiguous() for x in tensors]
    if moved[0].is_cuda:
        torch.cuda.synchronize()
    return [jax.dlpack.from_dlpack(x) for x in moved]
