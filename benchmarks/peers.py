"""The attention kernels that ours are compared with, through PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from baracuda_kernels.registry import Architecture

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}


def call_of(name: str, is_causal: bool) -> Callable[[Any, Any, Any], Any]:
    """``call(q, k, v) -> y`` by the peer of that name."""
    backend = BACKENDS[name]

    def call(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
            )

    return call


def available(problems: list[tuple]) -> list[tuple]:
    """The problems, family first, whose family this card can run."""
    hopper = Architecture.here().compute_capability == 90
    return [problem for problem in problems if hopper or problem[0] != "sm90a"]


def peers_for(q: Any, k: Any, v: Any, is_causal: bool) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """The peers that serve this problem."""
    found = {}
    for name in BACKENDS:
        call = call_of(name, is_causal)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns about why it refuses
                call(q, k, v)
        except RuntimeError as error:
            if "kernel" not in str(error).lower() and "cudnn" not in str(error).lower():
                raise
            continue
        found[name] = call
    return found
