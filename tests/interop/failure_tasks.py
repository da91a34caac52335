"""The worker's calls in which one rank fails before it sends anything."""

from __future__ import annotations

import contextlib
import time
from typing import Any
from unittest import mock

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from baracuda_kernels.errors import CudaError
from baracuda_kernels.interop.torch import (
    _buffers,
    _problem,
    context_parallel,
    ring_attention,
    synchronize,
    unshard,
)

_OPTIONS = {
    "a list as scale": {"scale": [1.0]},
    "a long text as scale": {"scale": "\U0001f600" * 700},
    "a list as is_causal": {"is_causal": []},
    "a list as sequence_layout": {"sequence_layout": ["zigzag"]},
}
_OF_MEMORY = {
    "out of memory": torch.OutOfMemoryError("CUDA out of memory"),
    "CUDA out of memory": CudaError(2, "cudaMalloc", "out of memory"),
    "no room": CudaError(2, "cudaMalloc", "out of memory"),
}
# Arguments of compiled code that the odd rank's call cannot take.
_COMPILED: dict[str, Any] = {
    "a dtype": lambda q, k, v: ((q, k.half(), v), {}),
    "integers": lambda q, k, v: ((q.int(), k.int(), v.int()), {}),
    "three dimensions": lambda q, k, v: ((q[0], k, v), {}),
    "another shape": lambda q, k, v: ((q, k, v[:, :1]), {}),
    "a list as q": lambda q, k, v: (([1.0], k, v), {}),
    "a word as scale": lambda q, k, v: ((q, k, v), {"scale": "x"}),
    "a list as is_causal": lambda q, k, v: ((q, k, v), {"is_causal": []}),
    "a tensor_layout": lambda q, k, v: ((q, k, v), {"tensor_layout": "bogus"}),
    "three dimensions of bshd": lambda q, k, v: ((q[0], k, v), {"tensor_layout": "bshd"}),
}
_COMPILED_UNSHARD: dict[str, Any] = {
    "a dim of unshard": {"dim": 7},
    "a word as dim of unshard": {"dim": "x"},
    "a layout of unshard": {"sequence_layout": "bogus"},
}
_COMPILED_IN_CONTEXT: dict[str, Any] = {
    "heads": lambda q, k, v: (torch.cat([q, q], 1), k, v),
    "leading dimensions": lambda q, k, v: (torch.stack([q, q]), *torch.stack([k, v] * 3).split(3)),
    "a dtype in a context": lambda q, k, v: (q, k.half(), v),
}
# The allocation that fails: of an output, or of the receive buffers of the peer exchange.
_ALLOCATION = {"no room": (_buffers, "DeviceBuffer")}


class Passing(TorchDispatchMode):
    """Calls what is called."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class FailureTasks:
    rank: int
    device: torch.device

    def one_fails(self, task: dict) -> dict:
        """The error of every rank, and how long it took."""
        what, odd = task["what"], self.rank == task["odd_rank"]
        q, k, v = torch.randn(3, 2, 4, 8, 16, device=self.device)
        if task["gradient"]:
            q.requires_grad_()
        options = _OPTIONS.get(what, {}) if odd else {}
        failure = _OF_MEMORY.get(what) if odd else None
        within = {"a mode": Passing, "a profiler": torch.profiler.profile}
        with within.get(task["within"], contextlib.nullcontext)():
            ring_attention(q, k, v)  # a ring and plans exist
            if what == "no room":
                q, k, v = (torch.cat([x, x], 2) for x in (q, k, v))
            if odd and what == "sparse":
                q = q.detach().to_sparse()
            if odd and what == "nested":
                q = torch.nested.nested_tensor(list(q.detach()))
            start = time.monotonic()
            try:
                if task["gradient"] and what in _OF_MEMORY:
                    y = ring_attention(q, k, v, **options)
                    _with(failure, what, lambda: y.sum().backward())
                else:
                    _with(failure, what, lambda: ring_attention(q, k, v, **options))
                if self.device.type == "cuda":
                    synchronize(timeout=30.0)
            except Exception as error:  # noqa: BLE001 - the test compares its name
                return {
                    "error": type(error).__name__,
                    "message": str(error),
                    "seconds": time.monotonic() - start,
                }
        return {"error": "", "message": "", "seconds": 0.0}

    def one_fails_in_backward(self, task: dict) -> dict:
        """The error of every rank if what PyTorch saved for the backward cannot be had on one, and
        whether the next step is right."""
        what, odd = task["what"], self.rank == task["odd_rank"]
        q, k, v = torch.randn(3, 2, 4, 8, 16, device=self.device)
        calls = []

        def attend(*operands: torch.Tensor) -> torch.Tensor:
            calls.append(operands)
            if not odd or len(calls) < 2:
                return ring_attention(*operands)
            if what == "a recomputation":
                raise ValueError(what)
            with mock.patch.object(_problem, "empty_like", side_effect=MemoryError(what)):
                return ring_attention(*operands)

        def unpack(x: torch.Tensor) -> torch.Tensor:
            raise ValueError(what)

        def walk(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(y, leaves, torch.ones_like(y))

        leaves = [x.requires_grad_() for x in (q, k, v)]
        exact = walk(ring_attention(*leaves))
        operands = [x * 1 for x in leaves]
        if what.startswith("a recomputation"):
            y = checkpoint(attend, *operands, use_reentrant=False)
        elif what == "a hook" and odd:
            with saved_tensors_hooks(lambda x: x, unpack):
                y = ring_attention(*operands)
        else:
            y = ring_attention(*operands)
        if what == "changed" and odd:
            operands[1].add_(1.0)
        if what == "freed":
            walk(y)
            y = y if odd else ring_attention(*leaves)
            if odd:
                ring_attention(*leaves)
        answer = {"error": "", "message": ""}
        start = time.monotonic()
        try:
            walk(y)
        except Exception as error:  # noqa: BLE001 - the test compares its name
            answer = {"error": type(error).__name__, "message": str(error)}
        seconds = time.monotonic() - start
        right = all(map(torch.equal, walk(ring_attention(*leaves)), exact))
        return {**answer, "seconds": seconds, "right": right}

    def one_fails_compiled(self, task: dict) -> dict:
        """The same of compiled code, and whether the next call of it is right."""
        what, odd = task["what"], self.rank == task["odd_rank"]
        q, k, v = torch.randn(3, 2, 4, 8, 16, device=self.device)
        exact = ring_attention(q, k, v)
        torch.compiler.reset()
        in_context = what in _COMPILED_IN_CONTEXT
        right: Any = {}
        if what in _COMPILED_UNSHARD:
            q, k, v = exact, None, None
            right = {"dim": 2, "sequence_layout": "zigzag"}
            wrong, options = (q, k, v), right | _COMPILED_UNSHARD[what]
            exact = unshard(q, **right)
            attend: Any = lambda x, *_, **given: unshard(x, **given)
        elif in_context:
            wrong, options = _COMPILED_IN_CONTEXT[what](q, k, v), {}
            attend = torch.nn.functional.scaled_dot_product_attention
        else:
            wrong, options = _COMPILED[what](q, k, v)
            attend = ring_attention
        compiled: Any = torch.compile(
            lambda *x, **given: attend(*x, **given), fullgraph=True, backend="aot_eager",
            dynamic=task["dynamic"] or None,
        )  # fmt: skip
        answer = {"error": "", "message": "", "seconds": 0.0, "right": False}
        with context_parallel() if in_context else contextlib.nullcontext():
            start = time.monotonic()
            try:
                if odd:
                    compiled(*wrong, **options)
                else:
                    compiled(q, k, v, **right)
            except Exception as error:  # noqa: BLE001 - the test compares its name
                answer |= {"error": type(error).__name__, "message": str(error)}
            answer["seconds"] = time.monotonic() - start
            answer["right"] = torch.equal(compiled(q, k, v, **right), exact)
        return answer


def _with(failure: Exception | None, what: str, call: Any) -> None:
    """A call in which an allocation fails, if there is a failure."""
    if failure is None:
        call()
        return
    where, name = _ALLOCATION.get(what, (_problem, "empty_like"))
    with mock.patch.object(where, name, side_effect=failure):
        call()
