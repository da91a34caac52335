"""Cuts a sequence for the ranks of a process group, and gathers it."""

from __future__ import annotations

from typing import Any

import torch

from baracuda_kernels import SequenceLayout
from baracuda_kernels._arguments import integer, layout_of
from baracuda_kernels._torch_transforms import refuse_derivatives
from baracuda_kernels.errors import BaracudaError, InvalidProblemError
from baracuda_kernels.interop.torch import _compiled, _dealing, _problem, _process_group
from baracuda_kernels.interop.torch._refusal import in_compiled_code

_LAYOUTS = tuple(str(member).lower() for member in SequenceLayout)
_LAYOUT_NAMES = ", ".join(repr(name) for name in _LAYOUTS)


def shard(
    x: torch.Tensor,
    dim: int,
    group: Any = None,
    sequence_layout: SequenceLayout | str = "contiguous",
) -> torch.Tensor:
    """This rank's rows of a tensor that every rank holds whole.

    Not `baracuda_kernels.shard`, which takes the number of ranks and returns all ranks' shards.

    Parameters
    ----------
    x : Tensor
        The whole tensor, the same on every rank.
    dim : int
        The sequence dimension; its length must be a multiple of the group's size. May be negative.
    group : ProcessGroup or DeviceMesh of one dimension, optional
        By default the default group.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.

    Returns
    -------
    Tensor
        A contiguous copy of the rows at this rank's ``position_ids``. The gradient of `x` is
        gathered from the shards of all ranks, so the backward is collective.

    Raises
    ------
    InvalidProblemError
        The length is not a multiple of the group's size (the message names the nearest ones), there
        is no such dimension, or the group or layout is wrong.
    UnsupportedError
        `x` has a tangent, is sparse, nested, quantized or a DTensor, or the call is within a
        ``torch.func`` transform.
    """
    dim, layout = _checked("shard", x, dim, sequence_layout)
    mine: torch.Tensor = _dealing.shard_op(x, dim, _process_group.name_of(group), layout)
    return mine


def unshard(
    x: torch.Tensor,
    dim: int,
    group: Any = None,
    sequence_layout: SequenceLayout | str = "contiguous",
) -> torch.Tensor:
    """The whole tensor, from every rank's rows: the inverse of `shard`. Collective.

    Parameters
    ----------
    x : Tensor
        This rank's rows, of the same shape and dtype on every rank.
    dim : int
        The sequence dimension. May be negative.
    group : ProcessGroup or DeviceMesh of one dimension, optional
        By default the default group.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.

    Returns
    -------
    Tensor
        A new tensor, the same on every rank. Every rank must use it in the same way, as in the same
        loss: the gradient of `x` is this rank's rows of the whole gradient, not a sum over the
        ranks.

    Raises
    ------
    InvalidProblemError
        Shapes, dtypes, `dim` or layouts differ between ranks, here or in the backward of `shard`;
        there is no such dimension, or the group or layout is wrong. On the CPU the others get an
        error of one rank, too.
    UnsupportedError
        `x` has a tangent, is sparse, nested, quantized or a DTensor, or the call is within a
        ``torch.func`` transform.
    CommunicatorError
        The all-gather failed, here or in the backward of `shard`.
    """
    name = _process_group.name_of(group)
    try:
        dim, layout = _checked("unshard", x, dim, sequence_layout)
    except BaracudaError as error:
        of_cpu = not isinstance(x, torch.Tensor) or x.device.type == "cpu"
        if torch.compiler.is_compiling() and of_cpu:
            given = x if isinstance(x, torch.Tensor) else torch.empty(1)
            return in_compiled_code(given, given, name, error)
        _dealing.tell(name, error, x)
        raise
    mark = _compiled.call_mark(x.device)
    whole: torch.Tensor = _dealing.unshard_op(x, dim, name, layout, mark)
    return whole


def position_ids(
    rows: int,
    group: Any = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    *,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Global positions of this rank's rows, for rotary and other position embeddings.

    Parameters
    ----------
    rows : int
        Number of rows of one rank.
    group : ProcessGroup or DeviceMesh of one dimension, optional
        By default the default group.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.
    device : torch.device, optional
        Device of the result; by default PyTorch's default device.

    Returns
    -------
    Tensor
        int64 ``[rows]``, rising. transformers takes it as ``position_ids.unsqueeze(0)``.

    Raises
    ------
    InvalidProblemError
        `rows` is negative, or the group or layout is wrong.
    """
    name = _process_group.name_of(group)
    if not torch.compiler.is_compiling():
        return _dealing.positions(rows, name, sequence_layout, device)
    if not isinstance(sequence_layout, str):
        sequence_layout = sequence_layout.name
    like = torch.empty(0, device=device)
    found: torch.Tensor = _dealing.positions_op(like, rows, name, sequence_layout)
    return found


def _checked(call: str, x: Any, dim: int, sequence_layout: SequenceLayout | str) -> tuple[int, str]:
    """The dimension, counted from the first, and the name of the layout."""
    if not isinstance(x, torch.Tensor):
        raise InvalidProblemError(f"x: got {type(x).__name__}, must be a torch.Tensor")
    compiling = torch.compiler.is_compiling()
    if not compiling:
        refuse_derivatives(call, {"x": x}, "use torch.autograd")
        if call == "unshard" or x.layout is not torch.sparse_coo:
            _problem.require_dense("x", x)
        dim = integer("dim", dim)
    elif not isinstance(dim, int):
        raise InvalidProblemError(f"dim: got {dim!r}, must be an integer")
    if not -x.dim() <= dim < x.dim():
        if x.dim() == 0:
            raise InvalidProblemError("x: got no dimensions, must have the sequence dimension")
        got = "another number" if compiling else dim  # a compiler may keep it open
        raise InvalidProblemError(f"dim: got {got}, must be in [{-x.dim()}, {x.dim()})")
    if not compiling:
        sequence_layout = layout_of(sequence_layout).name
    elif isinstance(sequence_layout, SequenceLayout):
        sequence_layout = sequence_layout.name
    elif sequence_layout.lower() not in _LAYOUTS:  # a compiler cannot call layout_of
        raise InvalidProblemError(
            f"sequence_layout: got {sequence_layout!r}, must be one of {_LAYOUT_NAMES}"
        )
    return dim % x.dim(), sequence_layout
