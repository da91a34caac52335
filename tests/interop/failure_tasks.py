"""The worker's calls in which one rank fails before it sends anything."""

from __future__ import annotations

import contextlib
import time
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from baracuda_kernels.errors import CudaError
from baracuda_kernels.interop.torch import _problem, ring_attention

_OPTIONS = {
    "a list as scale": {"scale": [1.0]},
    "a long text as scale": {"scale": "\U0001f600" * 700},
    "a list as is_causal": {"is_causal": []},
    "a list as sequence_layout": {"sequence_layout": ["zigzag"]},
}
_OF_MEMORY = {
    "out of memory": torch.OutOfMemoryError("CUDA out of memory"),
    "CUDA out of memory": CudaError(2, "cudaMalloc", "out of memory"),
}


class Passing(TorchDispatchMode):
    """Calls what is called."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class FailureTasks:
    rank: int

    def one_fails(self, task: dict) -> dict:
        """The error of every rank, and how long it took."""
        what, odd = task["what"], self.rank == task["odd_rank"]
        q, k, v = torch.randn(3, 2, 4, 8, 16)
        if task["gradient"]:
            q.requires_grad_()
        options = _OPTIONS.get(what, {}) if odd else {}
        failure = _OF_MEMORY.get(what) if odd else None
        within = {"a mode": Passing, "a profiler": torch.profiler.profile}
        with within.get(task["within"], contextlib.nullcontext)():
            ring_attention(q, k, v)  # a ring and plans exist
            if odd and what == "sparse":
                q = q.detach().to_sparse()
            if odd and what == "nested":
                q = torch.nested.nested_tensor(list(q.detach()))
            start = time.monotonic()
            try:
                if task["gradient"] and what in _OF_MEMORY:
                    y = ring_attention(q, k, v, **options)
                    _with(failure, lambda: y.sum().backward())
                else:
                    _with(failure, lambda: ring_attention(q, k, v, **options))
            except Exception as error:  # noqa: BLE001 - the test compares its name
                return {
                    "error": type(error).__name__,
                    "message": str(error),
                    "seconds": time.monotonic() - start,
                }
        return {"error": "", "message": "", "seconds": 0.0}


def _with(failure: Exception | None, call: Any) -> None:
    """A call in which the allocation of the first output fails, if there is a failure."""
    if failure is None:
        call()
        return
    with mock.patch.object(_problem, "empty_like", side_effect=failure):
        call()
