"""Cuts a sequence for the ranks of a process group, and gathers it."""

from __future__ import annotations

from typing import Any

import torch

from baracuda_kernels import SequenceLayout, sharding
from baracuda_kernels._arguments import layout_of
from baracuda_kernels._torch_transforms import refuse_derivatives
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.interop.torch import _compiled, _dealing, _process_group


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
        `x` has a tangent, or the call is within a ``torch.func`` transform.
    """
    _require_tensor("shard", x)
    dim = _dimension(x, dim)
    mine: torch.Tensor = _dealing.shard_op(
        x, dim, _process_group.name_of(group), _name_of(sequence_layout)
    )
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
        there is no such dimension, or the group or layout is wrong.
    UnsupportedError
        `x` has a tangent, or the call is within a ``torch.func`` transform.
    CommunicatorError
        The all-gather failed, here or in the backward of `shard`.
    """
    _require_tensor("unshard", x)
    dim = _dimension(x, dim)
    whole: torch.Tensor = _dealing.unshard_op(
        x,
        dim,
        _process_group.name_of(group),
        _name_of(sequence_layout),
        _compiled.call_mark(x.device),
    )
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
    ranks = _process_group.resolve(_process_group.name_of(group))
    positions = sharding.positions(rows, ranks.rank(), ranks.size(), sequence_layout)
    return torch.tensor(positions, device=device)


def _require_tensor(call: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise InvalidProblemError(f"x: got {type(x).__name__}, must be a torch.Tensor")
    if not torch.compiler.is_compiling():  # the operators would drop a tangent
        refuse_derivatives(call, {"x": x}, "use torch.autograd")


def _dimension(x: torch.Tensor, dim: int) -> int:
    if not -x.dim() <= dim < x.dim():
        raise InvalidProblemError(f"dim: got {dim}, must be in [{-x.dim()}, {x.dim()})")
    return dim % x.dim()


def _name_of(sequence_layout: SequenceLayout | str) -> str:
    if isinstance(sequence_layout, str):  # the operators check it; a compiler cannot
        return sequence_layout
    if torch.compiler.is_compiling():
        return sequence_layout.name
    return layout_of(sequence_layout).name
