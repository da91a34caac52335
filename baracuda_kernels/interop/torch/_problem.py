"""The checks of a call's tensors, for real and for fake tensors alike."""

from __future__ import annotations

import sys
from typing import Any

import torch

from baracuda_kernels import RingAttentionDescriptor
from baracuda_kernels._arguments import layout_of
from baracuda_kernels._core._device_buffer import DeviceBuffer
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.ops.attention._descriptor import accumulator_of
from baracuda_kernels.ops.ring_attention._plan import SPEC

ELEMENTS = {getattr(torch, name): element for name, element in SPEC.dtypes.items()}
_LSE = {
    dtype: getattr(torch, str(accumulator_of(element).dtype_name))
    for dtype, element in ELEMENTS.items()
}


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sequence_layout: str) -> None:
    """Raise for tensors that are not [B, H, S, D] of one dtype and device, before anything is
    sent."""
    layout_of(sequence_layout)
    if not q.dim() == k.dim() == v.dim() == 4:
        name, x = next((n, x) for n, x in (("q", q), ("k", k), ("v", v)) if x.dim() != 4)
        raise InvalidProblemError(f"{name}: got {x.dim()} dimensions, must have 4")
    if not q.dtype == k.dtype == v.dtype:
        raise InvalidProblemError(
            f"q, k, v: got {q.dtype}, {k.dtype} and {v.dtype}, must be of one dtype"
        )
    if q.dtype not in ELEMENTS:
        raise UnsupportedError(f"q: got {q.dtype}, must be one of {', '.join(map(str, ELEMENTS))}")
    if not q.device == k.device == v.device:
        raise InvalidProblemError(
            f"q, k, v: got {q.device}, {k.device} and {v.device}, must be on one device"
        )
    if q.device.type not in ("cpu", "cuda", "meta"):
        raise UnsupportedError(f"q: got device {q.device}, must be cpu or cuda")
    if v.shape != k.shape:
        raise InvalidProblemError(
            f"v: got shape {tuple(v.shape)} [B, H, S, D], must be k's, {tuple(k.shape)}"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise InvalidProblemError(
            f"k: got shape {tuple(k.shape)} [B, H, S, D], must have the batch size and head_dim of "
            f"q, {tuple(q.shape)}"
        )


def check_before_dispatch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, scale: float | None
) -> None:
    """Raise for what PyTorch's dispatcher would refuse by an error of its own, which the other
    ranks would not get."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        require_dense(name, x)
    RingAttentionDescriptor(1, 1, 1, 1, 1, scale=scale, is_causal=is_causal)


def require_dense(name: str, x: torch.Tensor) -> None:
    """UnsupportedError for a tensor that is not one block of numbers of this rank."""
    if x.is_nested or x.layout is not torch.strided:
        kind = "a nested tensor" if x.is_nested else f"layout {x.layout}"
        raise UnsupportedError(f"{name}: got {kind}, must be a dense tensor")
    if x.is_quantized:
        raise UnsupportedError(f"{name}: got a quantized tensor, must be dequantized")
    distributed = sys.modules.get("torch.distributed.tensor")  # loaded if there is a DTensor
    if distributed is not None and isinstance(x, distributed.DTensor):
        raise UnsupportedError(
            f"{name}: got a DTensor, must be this rank's own rows: give {name}.to_local()"
        )


def problem_of(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    is_causal: bool,
    scale: float | None,
    sequence_layout: str,
) -> tuple[Any, ...]:
    """The key of a plan. Tensors with a known key need no further `check`."""
    return (q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, k.device, v.device,
            is_causal, scale, sequence_layout)  # fmt: skip


def descriptor_of(problem: tuple[Any, ...]) -> RingAttentionDescriptor:
    """The descriptor of a problem that `check` has passed."""
    q_shape, k_shape, _, dtype, *_, is_causal, scale, sequence_layout = problem
    return RingAttentionDescriptor(
        q_shape[0],
        q_shape[1],
        q_shape[2],
        k_shape[2],
        k_shape[3],
        scale=scale,
        is_causal=is_causal,
        element=ELEMENTS[dtype],
        num_kv_heads=k_shape[1],
        sequence_layout=sequence_layout,
    )


def refuse_capture(device: torch.device) -> None:
    """Raise during the capture of a CUDA graph, for a call that must do the work of a first
    call."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise InvalidProblemError(
            "ring_attention: got the first call of a problem in a CUDA graph capture, must be a "
            "later call: the first one makes communicators and loads kernels; call it once before "
            "the "
            "capture"
        )


def outputs(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty y [B, H, S, D], dense, in the memory order of `empty_like`, and empty lse [B, H, S]. Of
    tensors that `check` would refuse they have the shapes that come closest."""
    return empty_like(q), q.new_empty(q.shape[:-1], dtype=_LSE.get(q.dtype, torch.float32))


def lse_form(q: torch.Tensor) -> torch.Tensor:
    """One number, expanded to the shape of lse. A ring keeps it, and makes lse by
    `torch.empty_like` of it, which takes half the host time of `new_empty`.

    On CUDA its memory is not from PyTorch's allocator. In a first call under Inductor's CUDA graphs
    the allocator would take it from the graphs' pool, where nothing may stay.
    """
    dtype = _LSE[q.dtype]
    if not q.is_cuda:
        return q.new_empty(1, dtype=dtype).expand(q.shape[:3])
    number = torch.as_tensor(DeviceBuffer(dtype.itemsize, q.device.index), device=q.device)
    return number.view(dtype).expand(q.shape[:3])


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """An empty dense tensor of the shape [B, H, S, D] of `x`. It has the memory order [B, S, H, D]
    if the strides of `x` have that order, else [B, H, S, D]."""
    if x.dim() == 4 and x.stride(1) < x.stride(2):  # a view of [B, S, H, D]
        b, h, s, d = x.shape
        return x.new_empty((b, s, h, d)).transpose(1, 2)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def readable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy if some kernel does not take its address or strides."""
    if x.data_ptr() % 16:
        return x.clone(memory_format=torch.contiguous_format)
    batch, head, row, column = x.stride()
    if column != 1 or (batch | head | row) * x.element_size() % 16:
        return x.contiguous()
    return x


def sendable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy if `x` is not dense."""
    x = readable(x)
    return x if x.is_contiguous() or _is_dense(x) else x.contiguous()


def order(x: torch.Tensor) -> tuple[int, ...]:
    """The dimensions of a dense tensor from the slowest to the fastest; empty if contiguous."""
    if x.is_contiguous():
        return ()
    moving = [i for i in range(4) if x.shape[i] > 1]
    strides = x.stride()
    return tuple(sorted(moving, key=lambda i: -strides[i]))


def _is_dense(x: torch.Tensor) -> bool:
    expected = 1
    for stride, extent in sorted(zip(x.stride(), x.shape, strict=True)):
        if extent == 1:
            continue
        if stride != expected:
            return False
        expected *= extent
    return True
