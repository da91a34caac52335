"""Refuses what PyTorch would record, transform or trace of a call without seeing into it.

Imported only where PyTorch is loaded already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

from baracuda_kernels.errors import UnsupportedError


def refuse_derivatives(call: str, tensors: Mapping[str, Any], instead: str) -> None:
    """UnsupportedError within a torch.func transform, or if a tensor has a tangent.

    `call` and the names of `tensors` begin the messages; `instead` is what to use for gradients.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise UnsupportedError(
            f"{call}: got a call within a torch.func transform, must be outside of grad, jvp and "
            f"vmap ({instead})"
        )
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None for x in tensors.values()
    ):
        raise UnsupportedError(
            f"{', '.join(tensors)}: got a tensor that has a tangent, must have none: forward-mode "
            "derivatives are not built"
        )


def refuse_tracing(call: str) -> None:
    """UnsupportedError while a mode or a tracer records operators.

    The kernels' writes are no operator: a trace would hold outputs that nobody wrote.
    """
    mode = _python_dispatch._get_current_dispatch_mode()
    if mode is not None or torch._C._get_tracing_state() is not None:
        what = "torch.jit.trace" if mode is None else type(mode).__name__
        raise UnsupportedError(
            f"{call}: got a call under {what}, must be outside of every TorchDispatchMode and "
            "trace, which do not see what the kernels write"
        )
