"""The types of calls with `return_lse` in the frameworks. For type checkers; it is not run."""

from typing import assert_type

import jax
import torch

from baracuda_kernels.interop import jax as in_jax
from baracuda_kernels.interop import torch as in_torch


def of_torch(q: torch.Tensor, wanted: bool) -> torch.Tensor:
    assert_type(in_torch.ring_attention(q, q, q, is_causal=True), torch.Tensor)
    both = in_torch.ring_attention(q, q, q, tensor_layout="bshd", return_lse=True)
    assert_type(both, tuple[torch.Tensor, torch.Tensor])
    either = in_torch.ring_attention(q, q, q, return_lse=wanted)
    return either[0] if isinstance(either, tuple) else either


def of_jax(q: jax.Array) -> jax.Array:
    y, lse = in_jax.ring_attention(q, q, q, "ring", return_lse=True)
    assert_type(lse, jax.Array)
    assert_type(in_jax.ring_attention(q, q, q, "ring", sequence_layout="zigzag"), jax.Array)
    return y
