"""The attention kernels that ours are compared with: PyTorch's, and FlashAttention-3 through JAX."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from baracuda_kernels.registry import Architecture
from benchmarks import flash3

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}

# call(q, k, v) -> y
Attention = Callable[[Any, Any, Any], Any]
Sets = list[tuple[Any, ...]]


def available(problems: Iterable[Any]) -> list[Any]:
    """The problems, family first, whose family this card can run."""
    hopper = Architecture.here().compute_capability == 90
    return [problem for problem in problems if hopper or not problem[0].startswith("sm90a")]


def peers_for(q: Any, k: Any, v: Any, is_causal: bool) -> dict[str, Attention]:
    """The peers of PyTorch's that serve this problem."""
    found: dict[str, Attention] = {}
    for name, backend in BACKENDS.items():
        call = functools.partial(_attend, backend, is_causal)
        with _unless_refused(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about why it refuses
            call(q, k, v)
            found[name] = call
    return found


def forward_calls(sets: Sets, is_causal: bool) -> dict[str, Callable[[int], Any]]:
    """By peer, a call that takes the number of one of `sets` of (q, k, v, ...)."""
    calls = {
        name: _by_number([functools.partial(call, *one[:3]) for one in sets])
        for name, call in peers_for(*sets[0][:3], is_causal).items()
    }
    if flash3.serves(sets[0][0]):
        calls["fa3"] = _by_number([flash3.forward(*one[:3], is_causal) for one in sets])
    return calls


def backward_calls(sets: Sets, is_causal: bool) -> dict[str, Callable[[int], Any]]:
    """The same of gradients, for `sets` of (q, k, v, dy, ...); each has its forward behind it."""
    calls = {}
    for name, call in peers_for(*sets[0][:3], is_causal).items():
        one_each = [gradient_call(call, *one[:4]) for one in sets]
        with _unless_refused():
            one_each[0]()
            calls[name] = _by_number(one_each)
    if flash3.serves(sets[0][0]):
        calls["fa3"] = _by_number([flash3.backward(*one[:4], is_causal) for one in sets])
    return calls


def gradient_call(
    call: Attention, q: Any, k: Any, v: Any, dy: Any
) -> Callable[[], Sequence[Any]]:
    """dq, dk, dv of a peer of PyTorch's, after its forward."""
    operands = [x.detach().requires_grad_() for x in (q, k, v)]
    y = call(*operands)
    return lambda: torch.autograd.grad(y, operands, dy, retain_graph=True)


def _attend(backend: SDPBackend, is_causal: bool, q: Any, k: Any, v: Any) -> Any:
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
        )


@contextlib.contextmanager
def _unless_refused() -> Iterator[None]:
    """Ends at PyTorch's refusal of a backend; whatever else is wrong is raised."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in ("kernel", "cudnn")):
            raise


def _by_number(calls: list[Callable[[], Any]]) -> Callable[[int], Any]:
    return lambda i: calls[i % len(calls)]()
