"""Dealing a sequence to the ranks of a process group, and gathering it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels import SequenceLayout, sharding
from baracuda_kernels._arguments import layout_of
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.torch import _process_group


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
        The whole tensor, alike on every rank.
    dim : int
        The sequence dimension; its length must be a multiple of the group's size. May be negative.
    group : ProcessGroup or DeviceMesh of one dimension, optional
        The default group by default.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.

    Returns
    -------
    Tensor
        A contiguous copy of the rows ``position_ids`` names.

    Raises
    ------
    InvalidProblemError
        The length does not divide (the message names the nearest that do), there is no such
        dimension, or the group or layout is wrong.
    """
    _require_tensor(x)
    ranks = _process_group.resolve(_process_group.name_of(group))
    dim = _dimension(x, dim)
    rows = sharding.rows_per_rank(x.shape[dim], ranks.size(), f"dimension {dim}")
    return x.index_select(dim, position_ids(rows, group, sequence_layout, device=x.device))


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
        The default group by default.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.

    Returns
    -------
    Tensor
        A new tensor, the same on every rank.

    Raises
    ------
    InvalidProblemError
        Shapes differ between ranks, there is no such dimension, or the group or layout is wrong.
    UnsupportedError
        A gradient would be needed: `x` requires it.
    """
    _require_tensor(x)
    if x.requires_grad and torch.is_grad_enabled():
        raise UnsupportedError(
            "x: requires a gradient, and only the forward is built; call it under torch.no_grad()"
        )
    layout = layout_of(sequence_layout)
    dim = _dimension(x, dim)
    ranks = _process_group.resolve(_process_group.name_of(group))
    shape = torch.tensor([dim, *x.shape], device=x.device)
    shapes = [torch.empty_like(shape) for _ in range(ranks.size())]
    if ranks.size() > 1:
        _require_alike(shape, shapes, ranks)
    pieces = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in shapes]
    dist.all_gather(pieces, x.contiguous(), group=ranks)
    return sharding.unshard(pieces, dim=dim, sequence_layout=layout)


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
        Rows of one rank.
    group : ProcessGroup or DeviceMesh of one dimension, optional
        The default group by default.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.
    device : torch.device, optional
        Where the result lies; PyTorch's default device by default.

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


def _require_tensor(x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise InvalidProblemError(f"x: got {type(x).__name__}, must be a torch.Tensor")


def _dimension(x: torch.Tensor, dim: int) -> int:
    if not -x.dim() <= dim < x.dim():
        raise InvalidProblemError(f"dim: got {dim}, x has {x.dim()} dimensions")
    return dim % x.dim()


def _require_alike(
    mine: torch.Tensor, everyone: list[torch.Tensor], ranks: dist.ProcessGroup
) -> None:
    count = torch.tensor([mine.numel()], device=mine.device)
    counts = [torch.empty_like(count) for _ in everyone]
    dist.all_gather(counts, count, group=ranks)
    alike = all(c.item() == counts[0].item() for c in counts)
    if alike:
        dist.all_gather(everyone, mine, group=ranks)
        alike = all(torch.equal(one, everyone[0]) for one in everyone)
    if not alike:
        raise InvalidProblemError(
            f"x: got shape {mine.tolist()[1:]} on rank {ranks.rank()}, which differs from that of "
            "another rank; shards must be alike, of one shape and dim"
        )
