"""The attention kernels that ours are compared with: PyTorch's, and FlashAttention-3 through JAX."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from baracuda_kernels.registry import Architecture
from benchmarks import flash3
from benchmarks.calls import Call
from benchmarks.rows import Measurement, Row
from benchmarks.timing import all_of

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}

_Problem = TypeVar("_Problem", bound=Sequence[Any])
# call(q, k, v) -> y
Attention = Callable[[Any, Any, Any], Any]


def available(problems: Iterable[_Problem]) -> list[_Problem]:
    """The problems, family first, whose family this card can run."""
    hopper = Architecture.here().compute_capability == 90
    return [problem for problem in problems if hopper or not problem[0].startswith("sm90a")]


def measurements(
    of_call: Callable[[Call], list[Row]], problems: Iterable[Call]
) -> list[Measurement]:
    """One for each problem that this card can run, without a mask and with one."""
    return [
        functools.partial(of_call, x._replace(causal=causal))
        for x in available(problems)
        for causal in (False, True)
    ]


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


def peer_calls(sets: Sequence[Any], is_causal: bool) -> dict[str, Callable[[], Any]]:
    """By peer, a call on each of `sets`: of (q, k, v), or of (q, k, v, dy) for gradients, each with
    its forward behind it."""
    calls, (q, k, v, *dy) = {}, sets[0]
    for name, call in peers_for(q, k, v, is_causal).items():
        one_each = [(gradient_call if dy else functools.partial)(call, *one) for one in sets]
        with _unless_refused():
            one_each[0]()
            calls[name] = all_of(one_each)
    if flash3.serves(q):
        make = flash3.backward if dy else flash3.forward
        calls["fa3"] = make(is_causal, sets)
    return calls


def gradient_call(call: Attention, q: Any, k: Any, v: Any, dy: Any) -> Callable[[], Sequence[Any]]:
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
