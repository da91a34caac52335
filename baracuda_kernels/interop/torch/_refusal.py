"""Sends the refusal of one rank to the others."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.fx.node import has_side_effect

from baracuda_kernels.errors import BaracudaError, InvalidProblemError, UnsupportedError

_library = torch.library.Library("baracuda", "FRAGMENT")
# is_problem: the error is an InvalidProblemError, else an UnsupportedError.
_library.define(
    "refused(Tensor query, Tensor value, str group_name, str reason, bool is_problem=False) -> Tensor"
)
_library.define("of_one_rank(Tensor x, str group_name, str reason) -> Tensor")


def _refuse(
    query: torch.Tensor,
    value: torch.Tensor,
    group_name: str,
    reason: str,
    is_problem: bool = False,
) -> torch.Tensor:
    """Replaces a refused call in compiled code; raises when it runs."""
    error = InvalidProblemError(reason) if is_problem else UnsupportedError(reason)
    tell(group_name, error, query.device)
    raise error


def _fake(
    query: torch.Tensor,
    value: torch.Tensor,
    group_name: str,
    reason: str,
    is_problem: bool = False,
) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], *value.shape[-1:]))


def _of_one_rank(x: torch.Tensor, group_name: str, reason: str) -> torch.Tensor:
    """A copy of `x` in compiled code of one rank; raises when it runs on a rank of several."""
    from baracuda_kernels.interop.torch import _process_group

    if _process_group.resolve(group_name).size() > 1:
        error = UnsupportedError(reason)
        tell(group_name, error, x.device)
        raise error
    return x.clone()


_library.impl("of_one_rank", _of_one_rank, "CompositeExplicitAutograd")
torch.library.register_fake(
    "baracuda::of_one_rank", lambda x, group_name, reason: torch.empty_like(x), lib=_library
)
torch.library.register_autograd(
    "baracuda::of_one_rank", lambda ctx, gradient: (gradient, None, None), lib=_library
)
_library.impl("refused", _refuse, "CompositeExplicitAutograd")
torch.library.register_fake("baracuda::refused", _fake, lib=_library)
# Kept where nothing uses its result, as when the refused call would have written to an operand.
has_side_effect(torch.ops.baracuda.refused.default)


def in_compiled_code(
    query: torch.Tensor, value: torch.Tensor, group_name: str, error: BaracudaError
) -> torch.Tensor:
    """What compiled code has in place of a refused call, of the shape of its result. It raises the
    error on every rank when it runs. An error that is raised while code is traced would be one of
    the compiler, which the other ranks do not get."""
    is_problem = isinstance(error, InvalidProblemError)
    y: torch.Tensor = torch.ops.baracuda.refused(
        query, value, group_name, error.args[0], is_problem
    )
    return y


def tell(group_name: str, error: BaracudaError, device: torch.device | None = None) -> None:
    """Send an error to the ranks that wait for this rank. This rank must not have sent anything of
    the call yet.

    On the CPU they get it in place of this rank's message in the comparison that begins every call.
    On CUDA they get it from the communicator (`Communicator.refuse`). The caller raises the error.
    """
    if torch.compiler.is_compiling() or not dist.is_initialized():
        return
    from baracuda_kernels.interop.torch import _process_group
    from baracuda_kernels.interop.torch._ring import ring_of

    if device is None:  # no tensor was given: use the device for which the group has a backend
        device = torch.device("cpu")
        if not _process_group.sends_cpu_tensors(group_name) and torch.cuda.is_available():
            device = torch.device("cuda")
    if device.type == "cuda":
        if _process_group.resolve(group_name).size() == 1 or not torch.cuda.is_available():
            return
        if torch.cuda.is_current_stream_capturing():
            return  # no communicator can be made in a capture, and no other rank waits
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        ring_of(group_name, device).refuse(error)
    elif device.type == "cpu" and _process_group.sends_cpu_tensors(group_name):
        ring_of(group_name, device).refuse(error)
