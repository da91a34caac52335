"""Cuts a sequence for the ranks of a ring, gathers it, and gives the position of each row.

A rank's shard is a set of rows of the whole sequence, in rising order:

========== ===================================================================================
contiguous rank ``r`` holds the rows ``r*L .. (r+1)*L - 1``
zigzag     two runs: one from the front and one from the mirrored place at the back, so that every
           rank has the same causal work (if ``L`` is odd, nearly the same)
striped    every ``P``-th row: ``r, r + P, r + 2P, …``
========== ===================================================================================

``L`` is the number of rows of a rank and ``P`` the world size. The library's kernels mask by the
same maps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from baracuda_kernels._arguments import array, integer, layout_of, library_of
from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.ops.attention._positions import layout_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["positions", "rows_per_rank", "shard", "unshard"]

_Array = TypeVar("_Array")
# A bound on the lists that have an entry for each rank.
MAX_RANKS = 65536


def rows_per_rank(total: int, world_size: int, what: str = "sequence") -> int:
    """Number of rows of each rank, if `world_size` ranks share `total` rows evenly.

    Parameters
    ----------
    total, world_size : int
    what : str, default "sequence"
        The name of the sequence, for the message.

    Raises
    ------
    InvalidProblemError
        If `world_size` is not from 1 to 65536, or does not divide `total`. The message names the
        nearest lengths that fit.
    """
    total = integer("total", total, least=0)
    world_size = integer("world_size", world_size, least=1, most=MAX_RANKS)
    rest = total % world_size
    if rest:
        below, above = total - rest, total - rest + world_size
        nearest = f"{below} and {above}" if below else f"{above}"
        raise InvalidProblemError(
            f"{what}: got {total} rows, must be a multiple of the {world_size} ranks, such as "
            f"{nearest}"
        )
    return total // world_size


def check_layout(
    length: int, world_size: int, sequence_layout: SequenceLayout | str
) -> SequenceLayout:
    """The layout, or `InvalidProblemError` if it is unknown or a number is out of its range."""
    layout = layout_of(sequence_layout)
    # As many ranks and rows as the C ABI takes, and their positions.
    ranks = integer("world_size", world_size, least=1, most=2**31 - 1)
    integer("length", length, least=0, most=2**62 // ranks)
    return layout


def positions(
    length: int,
    rank: int,
    world_size: int,
    sequence_layout: SequenceLayout | str = "contiguous",
) -> NDArray[np.int64]:
    """Global positions of the rows that a rank holds.

    Parameters
    ----------
    length : int
        Number of rows of one rank (not of the whole sequence); 0 or more.
    rank : int
        In ``[0, world_size)``.
    world_size : int
        Number of ranks; 1 or more.
    sequence_layout : SequenceLayout or str, default "contiguous"
        A member, or its name in any case: contiguous, zigzag, striped.

    Returns
    -------
    numpy.ndarray
        int64, shape ``[length]``, rising.

    Raises
    ------
    InvalidProblemError
        If a number is out of its range or the layout is unknown.
    """
    layout = check_layout(length, world_size, sequence_layout)
    length, world_size = integer("length", length), integer("world_size", world_size)
    rank = integer("rank", rank, least=0, most=world_size - 1)
    rows = [
        np.arange(run.start, run.stop, run.step, dtype=np.int64)
        for run in _runs(layout, rank, world_size, length)
    ]
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


@overload
def shard(
    x: Sequence[Any],
    world_size: int,
    *,
    dim: int = 2,
    sequence_layout: SequenceLayout | str = "contiguous",
) -> list[NDArray[Any]]: ...
@overload
def shard(
    x: _Array,
    world_size: int,
    *,
    dim: int = 2,
    sequence_layout: SequenceLayout | str = "contiguous",
) -> list[_Array]: ...
def shard(
    x: Any,
    world_size: int,
    *,
    dim: int = 2,
    sequence_layout: SequenceLayout | str = "contiguous",
) -> list[Any]:
    """Cut an array's sequence dimension for the ranks of a ring. Returns the shards of all ranks.

    It needs no process group. In a PyTorch program with a process group, `interop.torch.shard`
    returns only this rank's shard; it has other arguments.

    Parameters
    ----------
    x : array
        NumPy (any dtype, ml_dtypes too; lists become NumPy arrays, masked arrays are refused),
        PyTorch, CuPy or JAX.
    world_size : int
        Number of ranks. The length of `dim` must be a multiple of it.
    dim : int, default 2
        The sequence dimension: 2 in ``[B, H, S, D]`` and in ``[B, H, S]``. May be negative.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.

    Returns
    -------
    list of arrays
        One per rank, of the kind of `x`. A shard of one run of rows (contiguous, striped, or all
        rows) is a view of `x` if the library has views. A shard of two runs (zigzag) is a copy.

    Raises
    ------
    InvalidProblemError
        If the length is not a multiple of `world_size` (the message names the nearest ones), if `x`
        has no such dimension, or if the layout is unknown.
    """
    layout = layout_of(sequence_layout)
    x = array("x", x)
    dim = _check_dim(x, dim)
    length = rows_per_rank(int(x.shape[dim]), world_size, f"dimension {dim}")

    world_size = integer("world_size", world_size)
    shards = []
    for rank in range(world_size):
        runs = _runs(layout, rank, world_size, length) if world_size > 1 else [slice(0, length)]
        pieces = [_take(x, dim, run) for run in runs or [slice(0, 0)]]
        shards.append(pieces[0] if len(pieces) == 1 else _concatenate(pieces, dim))
    return shards


def unshard(
    shards: Sequence[_Array],
    *,
    dim: int = 2,
    sequence_layout: SequenceLayout | str = "contiguous",
) -> _Array:
    """Gather the shards of all ranks: the inverse of `shard`.

    Parameters
    ----------
    shards : sequence of arrays
        One per rank, in the order of the ranks, all of one kind, shape and dtype.
    dim : int, default 2
        The sequence dimension. May be negative.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.

    Returns
    -------
    array
        A new array of the kind of the shards.

    Raises
    ------
    InvalidProblemError
        If there are no shards, if their kinds, shapes or dtypes differ, or if the layout is
        unknown.
    """
    layout = layout_of(sequence_layout)
    if not isinstance(shards, Iterable) or getattr(shards, "ndim", 1) == 0:
        raise InvalidProblemError(
            f"shards: got {type(shards).__name__}, must be a sequence of one array per rank"
        )
    parts = [array(f"shards[{rank}]", x) for rank, x in enumerate(shards)]
    if not parts:
        raise InvalidProblemError("shards: got none, must be one array per rank")
    shapes = {tuple(x.shape) for x in parts}
    if len(shapes) != 1:
        raise InvalidProblemError(f"shards: got shapes {sorted(shapes)}, must be equal")
    kinds = {f"{library_of(x)} {getattr(x, 'dtype', '')}".rstrip() for x in parts}
    if len(kinds) != 1:
        raise InvalidProblemError(
            f"shards: got {' and '.join(sorted(kinds))}, must be of one library and dtype"
        )
    gathered: _Array = _gather(parts, _check_dim(parts[0], dim), layout)
    return gathered


def _gather(shards: list[Any], dim: int, layout: SequenceLayout) -> Any:
    length = int(shards[0].shape[dim])
    runs = [_runs(layout, rank, len(shards), length) for rank in range(len(shards))]
    if len(shards) > 1 and all(len(one) == 1 and one[0].step == len(shards) for one in runs):
        return _interleave(shards, dim)
    pieces = []
    for shard_of_rank, runs_of_rank in zip(shards, runs, strict=True):
        row = 0
        for run in runs_of_rank:
            count = len(range(run.start, run.stop, run.step))
            pieces.append((run.start, _take(shard_of_rank, dim, slice(row, row + count))))
            row += count
    if not pieces:
        return _concatenate(shards, dim)
    return _concatenate([piece for _, piece in sorted(pieces, key=lambda p: p[0])], dim)


def _runs(layout: SequenceLayout, rank: int, world_size: int, length: int) -> list[slice]:
    """The rows of a rank as slices of the whole sequence, without empty slices."""
    head, tail, stride, split = layout_map(layout, rank, world_size, length)
    split = min(split, length)
    return [
        slice(start, start + count * stride, stride)
        for start, count in ((head, split), (tail, length - split))
        if count > 0
    ]


def _interleave(shards: list[Any], dim: int) -> Any:
    """Row i of rank r becomes row i*P + r, by a new dimension of ranks after the rows."""
    shape = list(shards[0].shape)
    wide = [s.reshape((*shape[: dim + 1], 1, *shape[dim + 1 :])) for s in shards]
    shape[dim] *= len(shards)
    return _concatenate(wide, dim + 1).reshape(tuple(shape))


def _check_dim(x: Any, dim: int) -> int:
    ndim, dim = len(x.shape), integer("dim", dim)
    if not -ndim <= dim < ndim:
        raise InvalidProblemError(f"dim: got {dim}, must be in [{-ndim}, {ndim})")
    return dim % ndim


def _take(x: Any, dim: int, rows: slice) -> Any:
    return x[(slice(None),) * dim + (rows,)]


def _concatenate(pieces: list[Any], dim: int) -> Any:
    # The array's library is loaded already: look it up without an import.
    root = library_of(pieces[0])
    if root == "torch":
        return sys.modules["torch"].cat(pieces, dim=dim)
    if root == "cupy":
        with pieces[0].device:  # CuPy makes the result on the current device
            return sys.modules["cupy"].concatenate(pieces, axis=dim)
    if root == "jax":
        return sys.modules["jax"].numpy.concatenate(pieces, axis=dim)
    return np.concatenate(pieces, axis=dim)
