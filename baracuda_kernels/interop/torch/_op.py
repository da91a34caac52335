"""``ring_attention`` as an operator of PyTorch: dispatch, fake tensors, the backward's place."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch.autograd import forward_ad

from baracuda_kernels import SequenceLayout
from baracuda_kernels._arguments import layout_of
from baracuda_kernels.errors import BaracudaError, InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.torch import _problem, _process_group
from baracuda_kernels.interop.torch._refusal import tell
from baracuda_kernels.interop.torch._ring import ring_of

# torch.library.custom_op would add about 10 us of Python to every call.
_library = torch.library.Library("baracuda", "FRAGMENT")
_library.define(
    "ring_attention(Tensor q, Tensor k, Tensor v, str group_name, bool is_causal, float? scale, "
    "str sequence_layout) -> (Tensor, Tensor)",
    tags=(torch.Tag.needs_fixed_stride_order,),
)


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_name: str,
    is_causal: bool,
    scale: float | None,
    sequence_layout: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return ring_of(group_name, q.device).attend(q, k, v, is_causal, scale, sequence_layout)


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_name: str,
    is_causal: bool,
    scale: float | None,
    sequence_layout: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    _problem.check(q, k, v, sequence_layout)
    return _problem.outputs(q)


_NO_GRADIENT = (
    "ring_attention: a gradient of q, k or v is needed, and only the forward is built; call "
    "the model under torch.no_grad(), or detach them"
)


def _backward(ctx: Any, *gradients: torch.Tensor) -> Any:
    raise UnsupportedError(_NO_GRADIENT)


_library.impl("ring_attention", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("baracuda::ring_attention", _fake, lib=_library)
torch.library.register_autograd("baracuda::ring_attention", _backward, lib=_library)
_op = torch.ops.baracuda.ring_attention.default


@overload
def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group: Any = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    tensor_layout: Literal["bhsd", "bshd"] = "bhsd",
    return_lse: Literal[False] = False,
) -> torch.Tensor: ...
@overload
def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group: Any = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    tensor_layout: Literal["bhsd", "bshd"] = "bhsd",
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group: Any = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    tensor_layout: Literal["bhsd", "bshd"] = "bhsd",
    return_lse: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]: ...
def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group: Any = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    tensor_layout: Literal["bhsd", "bshd"] = "bhsd",
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Exact attention of this rank's queries over the keys of every rank; every rank calls it.

    Forward only: call it under ``torch.no_grad()``, or with tensors that need no gradient. The only
    mask is the causal one; there is no window and no dropout.

    Works in eager mode, under ``torch.compile(fullgraph=True)``, under
    ``torch.inference_mode()``, and in CUDA graphs once the same problem has been called. Outputs
    and scratch come from PyTorch's allocator at every call. Communicators and plans are kept
    (`clear_cache` drops them). On CUDA the first call of a problem compares it among the ranks, on
    the CPU every call does.

    Parameters
    ----------
    q : Tensor
        This rank's ``[B, H, S, D]``, or ``[B, S, H, D]`` with `tensor_layout`; float16, bfloat16,
        float32 or float64, on cpu or cuda. S is the rows of one rank, the same on every rank.
    k, v : Tensor
        ``[B, Hkv, Sk, D]`` (or ``[B, Sk, Hkv, D]``), ``H % Hkv == 0``. Sent from where they lie if
        dense in any dimension order (the same on every rank), else from a copy.
    group : ProcessGroup or DeviceMesh of one dimension, optional
        The ring's ranks in order; the default group by default. On the CPU any backend that sends
        CPU tensors (gloo); on CUDA, NCCL: the group's communicator where this torch lends it,
        else one of our own.
    is_causal : bool, default False
        Global row ``i`` sees the keys ``j <= i``.
    scale : float, optional
        Factor on ``q·k``; default ``1 / sqrt(D)``.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped (`shard` does it).
    tensor_layout : {"bhsd", "bshd"}, default "bhsd"
        The order of dimensions of q, k, v and y.
    return_lse : bool, default False

    Returns
    -------
    y : Tensor
        The shape and dtype of q, dense, in the order of q's dimensions in memory.
    lse : Tensor
        With `return_lse`: ``[B, H, S]`` in either `tensor_layout`; float64 for float64, else
        float32; natural log, -inf in rows that see no key.

    Raises
    ------
    InvalidProblemError
        Shapes, dtypes, devices, the group or the layout do not fit, or differ between ranks.
    UnsupportedError
        No kernel serves the problem; or a derivative is asked for: an operand needs a gradient or
        has a tangent.
    CommunicatorError, NcclError, NcclTimeoutError, CudaError
        The ring or the device failed.
    """
    name = _process_group.name_of(group)
    swapped = tensor_layout == "bshd"
    try:
        if not swapped and tensor_layout != "bhsd":
            raise InvalidProblemError(
                f'tensor_layout: got {tensor_layout!r}, must be "bhsd" or "bshd"'
            )
        kind = torch.Tensor
        if swapped or not (isinstance(q, kind) and isinstance(k, kind) and isinstance(v, kind)):
            _check_tensors(q, k, v, swapped)
    except BaracudaError as error:
        tell(name, error, device_of(q, k, v))
        raise
    if swapped:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    y, lse = attend(q, k, v, name, is_causal, scale, sequence_layout)
    if swapped:
        y = y.transpose(1, 2)
    return (y, lse) if return_lse else y


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_name: str,
    is_causal: bool,
    scale: float | None,
    sequence_layout: SequenceLayout | str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y and lse for tensors [B, H, S, D], by the name of the group."""
    if torch.compiler.is_compiling():  # AOTAutograd asks for the backward in the forward call
        if not isinstance(sequence_layout, str):
            sequence_layout = sequence_layout.name
        traced: tuple[torch.Tensor, torch.Tensor] = _op(
            q, k, v, group_name, is_causal, scale, sequence_layout
        )
        return traced
    try:
        _refuse_derivatives(q, k, v)
        if not isinstance(sequence_layout, str):
            sequence_layout = layout_of(sequence_layout).name
    except BaracudaError as error:
        tell(group_name, error, q.device)
        raise
    # Autograd's layer is Python and would only find that there is nothing to record.
    both: tuple[torch.Tensor, torch.Tensor]
    with torch._C._AutoDispatchBelowAutograd():
        both = _op(q, k, v, group_name, is_causal, scale, sequence_layout)
    return both


def _check_tensors(q: Any, k: Any, v: Any, swapped: bool) -> None:
    for argument, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor):
            raise InvalidProblemError(f"{argument}: got {type(x).__name__}, must be a torch.Tensor")
        if swapped and x.dim() != 4:
            raise InvalidProblemError(f"{argument}: got {x.dim()} dimensions, must have 4")


def device_of(*values: Any) -> torch.device | None:
    """The device of the first tensor among them."""
    return next((x.device for x in values if isinstance(x, torch.Tensor)), None)


def _refuse_derivatives(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise UnsupportedError(
            "ring_attention: is called within a torch.func transform, and only the forward is "
            "built; call it outside of grad, jvp and vmap"
        )
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise UnsupportedError(_NO_GRADIENT)
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None for x in (q, k, v)
    ):
        raise UnsupportedError(
            "ring_attention: q, k or v has a tangent, and forward-mode derivatives are not built"
        )
