"""Counts the (row, key) pairs of a rank's rows and a chunk of keys that a mask leaves visible.

The library counts them, by the intervals with which its kernels mask. A shard is one or two runs of
evenly spaced positions, so a pair of shards is a few blocks, each of a run of rows and a run of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.ops.attention import _intervals
from baracuda_kernels.sharding import check_layout

Integers = Any  # an integer or an int64 array of them


@dataclass(frozen=True, eq=False)
class VisiblePairs:
    """The visible pairs of one pair of chunks, or of an array of such pairs.

    Parameters
    ----------
    full : int64 array
        Number of pairs in blocks that the mask does not cut. They run at the rate of attention
        without a mask.
    cut : int64 array
        Number of pairs in blocks on the diagonal, which the mask cuts. They run at the rate of causal
        attention.
    live_rows : int64 array
        Number of rows that see at least one key.
    """

    full: Integers
    cut: Integers
    live_rows: Integers

    @property
    def total(self) -> Integers:
        """Number of all visible pairs."""
        return self.full + self.cut


def visible_pairs(
    length: int,
    rank: Integers,
    origin: Integers,
    world_size: int,
    sequence_layout: SequenceLayout | str = "contiguous",
    *,
    causal: bool = True,
) -> VisiblePairs:
    """Count the pairs of `rank`'s rows and the keys that `origin` started with.

    Parameters
    ----------
    length : int
        Number of rows, and of keys, of one rank; 0 or more. At most 2**30 / `world_size`.
    rank, origin : int or int64 array
        In ``[0, world_size)``. Arrays are used element by element.
    world_size : int
        Number of ranks; 1 or more.
    sequence_layout : SequenceLayout or str, default "contiguous"
    causal : bool, default True
        Row at position p sees the keys at positions up to p. Otherwise every pair is visible.

    Returns
    -------
    VisiblePairs
        Its arrays have the shape of `rank` and `origin`.

    Raises
    ------
    InvalidProblemError
        If a number is out of its range or the layout is unknown.
    """
    layout = check_layout(length, world_size, sequence_layout)
    if length * world_size > 2**30:
        # Pairs are counted in 64 bits.
        raise InvalidProblemError(
            f"length: got {length} with world_size {world_size}, must be at most 2**30 rows in all"
        )
    rank, origin = np.broadcast_arrays(
        np.asarray(rank, dtype=np.int64), np.asarray(origin, dtype=np.int64)
    )
    for name, value in (("rank", rank), ("origin", origin)):
        if value.size and not (value.min() >= 0 and value.max() < world_size):
            raise InvalidProblemError(f"{name}: got {value}, must be in [0, {world_size})")
    counted = _intervals.visible_pairs(
        layout, world_size, length, causal, rank.tobytes(), origin.tobytes()
    )
    full, cut, first, end = np.moveaxis(
        np.frombuffer(counted, dtype=np.int64).reshape(*rank.shape, 4), -1, 0
    )
    return VisiblePairs(full, cut, end - first)
