"""What is asked of a call's tensors, the same for real and for fake ones."""

from __future__ import annotations

import torch

from baracuda_kernels._arguments import layout_of
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.ops.attention._descriptor import accumulator_of
from baracuda_kernels.ops.ring_attention._plan import SPEC

ELEMENTS = {getattr(torch, name): element for name, element in SPEC.dtypes.items()}
_LSE = {
    dtype: getattr(torch, str(accumulator_of(element).dtype_name))
    for dtype, element in ELEMENTS.items()
}


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sequence_layout: str) -> None:
    """Raise for tensors [B, H, S, D] that no ring could serve, before anything is sent."""
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
            f"q, k, v: lie on {q.device}, {k.device} and {v.device}, must lie on one device"
        )
    if q.device.type not in ("cpu", "cuda", "meta"):
        raise UnsupportedError(f"q: lies on {q.device}, must lie on cpu or cuda")
    if v.shape != k.shape:
        raise InvalidProblemError(
            f"v: got shape {tuple(v.shape)} [B, H, S, D], must be k's, {tuple(k.shape)}"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise InvalidProblemError(
            f"k: got shape {tuple(k.shape)} [B, H, S, D], must have the batch size and head_dim of "
            f"q, {tuple(q.shape)}"
        )


def outputs(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty y [B, H, S, D], dense and in the order of q's dimensions, and lse [B, H, S]."""
    b, h, s, d = q.shape
    if q.stride(1) < q.stride(2):  # a view of [B, S, H, D]
        y = q.new_empty((b, s, h, d)).transpose(1, 2)
    else:
        y = q.new_empty((b, h, s, d))
    return y, q.new_empty((b, h, s), dtype=_LSE[q.dtype])


def readable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy where its addresses do not suit every kernel."""
    if x.data_ptr() % 16:
        return x.clone(memory_format=torch.contiguous_format)
    batch, head, row, column = x.stride()
    if column != 1 or (batch | head | row) * x.element_size() % 16:
        return x.contiguous()
    return x


def sendable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy where its elements are not one dense run of memory."""
    x = readable(x)
    return x if x.is_contiguous() or _is_dense(x) else x.contiguous()


def order(x: torch.Tensor) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest: what a dense tensor's message looks like."""
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
