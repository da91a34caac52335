"""``ring_attention``, and the layouts, casts and refusals before its operator."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch

from baracuda_kernels import SequenceLayout
from baracuda_kernels._arguments import layout_of
from baracuda_kernels._torch_transforms import refuse_derivatives
from baracuda_kernels.errors import BaracudaError, InvalidProblemError
from baracuda_kernels.interop.torch import _compiled, _process_group
from baracuda_kernels.interop.torch._entered import note_call
from baracuda_kernels.interop.torch._operator import differentiable, forward_op, run_forward
from baracuda_kernels.interop.torch._refusal import in_compiled_code, tell


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
    """Exact attention of this rank's queries over the keys of every rank. Collective.

    The only mask is the causal one; there is no window and no dropout. y and lse have gradients by
    q, k and v. The backward is collective too; for it q, k, v, y and lse are kept. There is no
    second derivative and no forward-mode derivative.

    Works in eager mode, under ``torch.compile(fullgraph=True)``, under ``torch.inference_mode()``,
    under activation checkpointing, and in CUDA graphs after an eager call of the same problem.
    Graph replays and other calls of a ring may share its receive buffers: if they are on several
    streams, order them yourself. Tensors on "meta" give the shapes alone, and nothing is sent.
    Under autocast q, k and v are cast as ``scaled_dot_product_attention`` casts them. With
    ``torch.use_deterministic_algorithms`` only deterministic kernels are used. Outputs and scratch
    come from PyTorch's allocator in every call; with the peer exchange the ring keeps its receive
    buffers. Communicators and plans are cached (`clear_cache` drops them). The ranks compare the
    problem: on CUDA in its first call, on the CPU in every call.

    Parameters
    ----------
    q : Tensor
        This rank's ``[B, H, S, D]``, or ``[B, S, H, D]`` with `tensor_layout`; float16, bfloat16,
        float32 or float64, on cpu or cuda. S is the number of rows of one rank, the same on every
        rank.
    k, v : Tensor
        ``[B, Hkv, Sk, D]`` (or ``[B, Sk, Hkv, D]``), ``H % Hkv == 0``. Sent in place if dense in
        any order of dimensions (the same on every rank), else from a copy.
    group : ProcessGroup or DeviceMesh of one dimension, optional
        The ring's ranks in order; by default the default group. On the CPU any backend that sends
        CPU tensors (gloo). On CUDA NCCL: the group's communicator if this torch lends it, else a
        new one.
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
        The shape and dtype of q, dense. Its memory has the order ``[B, H, S, D]``, or
        ``[B, S, H, D]`` if the strides of q have that order.
    lse : Tensor
        Only with `return_lse`. ``[B, H, S]`` in either `tensor_layout`; float64 for float64, else
        float32; natural logarithm, -inf in rows that see no key.

    Raises
    ------
    InvalidProblemError
        Shapes, dtypes, devices, the group or the layout do not fit, or differ between ranks.
    UnsupportedError
        No kernel serves the problem, or its gradient if an operand needs one, or none of them is
        deterministic and that is asked for. An operand has a tangent, the call is within a
        ``torch.func`` transform, or a backward is asked for a second derivative.
    CommunicatorError, NcclError, NcclTimeoutError, CudaError
        The ring or the device failed, in the forward or in a backward. If a rank raises an error
        that is not of this library before it sends, such as torch.OutOfMemoryError, the other ranks
        raise a CommunicatorError that names it.
    """
    name = _process_group.name_of(group)
    swapped = tensor_layout == "bshd"
    kind = torch.Tensor
    plain = isinstance(q, kind) and isinstance(k, kind) and isinstance(v, kind)
    checked = not plain or tensor_layout != "bhsd" or torch.compiler.is_compiling()
    if checked and (wrong := _wrong_arguments(q, k, v, is_causal, scale, tensor_layout)):
        y = _refuse(wrong, name, q, k, v)
        return (y, y.sum(-1)) if return_lse else y
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
    of_context: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y and lse of tensors [B, H, S, D] on the ring of the group with that name."""
    compiling = torch.compiler.is_compiling()
    if compiling or torch._C._is_any_autocast_enabled():
        q, k, v = _as_autocast_casts(q, k, v)
    with_gradient = torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
    )
    both: tuple[torch.Tensor, torch.Tensor]
    if compiling:
        if not isinstance(sequence_layout, str):
            sequence_layout = sequence_layout.name
        mark = _compiled.call_mark(q.device, of_context)
        both = forward_op(
            q, k, v, group_name, is_causal, scale, sequence_layout, with_gradient, mark
        )
        return both
    try:
        refuse_derivatives("ring_attention", {"q": q, "k": k, "v": v}, "use torch.autograd")
        if not isinstance(sequence_layout, str):
            sequence_layout = layout_of(sequence_layout).name
        if with_gradient:
            _refuse_inference(q, k, v)
    except BaracudaError as error:
        tell(group_name, error, q.device)
        raise
    note_call(group_name, sequence_layout, q.device)
    if with_gradient:
        both = differentiable(q, k, v, group_name, is_causal, scale, sequence_layout)
        return both
    return run_forward(q, k, v, group_name, is_causal, scale, sequence_layout, False)


def _refuse_inference(*operands: torch.Tensor) -> None:
    """Raise for what autograd would refuse only after the forward."""
    for name, x in zip(("q", "k", "v"), operands, strict=True):
        if x.is_inference():
            raise InvalidProblemError(
                f"{name}: got a tensor made in inference mode, must be another one if an operand "
                f"requires a gradient: give {name}.clone()"
            )


def _as_autocast_casts(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v in the dtype that autocast gives to ``scaled_dot_product_attention``."""
    device = q.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return q, k, v
    dtype = torch.get_autocast_dtype(device)

    def cast(x: torch.Tensor) -> torch.Tensor:
        keeps = x.dtype is torch.float64 or not x.is_floating_point() or x.device.type != device
        return x if keeps else x.to(dtype)

    return cast(q), cast(k), cast(v)


def _wrong_arguments(
    q: Any, k: Any, v: Any, is_causal: Any, scale: Any, tensor_layout: Any
) -> str:
    """What is wrong with arguments that neither the operator nor `attend` can take; empty if
    nothing. The descriptor checks what can be passed on."""
    if tensor_layout != "bhsd" and tensor_layout != "bshd":
        return f'tensor_layout: got {tensor_layout!r}, must be "bhsd" or "bshd"'
    for argument, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor):
            return f"{argument}: got {type(x).__name__}, must be a torch.Tensor"
        if tensor_layout == "bshd" and x.dim() != 4:
            return f"{argument}: got {x.dim()} dimensions, must have 4"
    if torch.compiler.is_compiling():
        if not isinstance(is_causal, bool):
            return f"is_causal: got {is_causal!r}, must be a bool"
        numbers = (int, float)
        if isinstance(scale, bool) or not (scale is None or isinstance(scale, numbers)):
            return f"scale: got {scale!r}, must be None or a float"
    return ""


def _refuse(reason: str, group_name: str, q: Any, k: Any, v: Any) -> torch.Tensor:
    """Raise on every rank. Compiled code raises when it runs, so it has a result here."""
    error = InvalidProblemError(reason)
    if torch.compiler.is_compiling():
        given = [x for x in (q, k, v) if isinstance(x, torch.Tensor)]
        x = given[0] if given else torch.empty(1)
        return in_compiled_code(x, x, group_name, error)
    tell(group_name, error, device_of(q, k, v))
    raise error


def device_of(*values: Any) -> torch.device | None:
    """The device of the first tensor among them."""
    return next((x.device for x in values if isinstance(x, torch.Tensor)), None)
