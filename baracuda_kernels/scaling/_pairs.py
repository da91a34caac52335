"""How many (row, key) pairs of one rank's rows and one chunk of keys a causal mask leaves.

A shard is one or two runs of evenly spaced positions, so a chunk pair is a few blocks of a run of
rows and a run of keys. In a block row ``i`` sees ``clamp(i + offset, 0, keys)`` keys: a sum with a
closed form, for all ranks at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.sharding import check_layout

Integers = Any  # an integer or an int64 array of them


@dataclass(frozen=True, eq=False)
class VisiblePairs:
    """Visible pairs of one chunk pair, or of an array of them.

    Parameters
    ----------
    full : int64 array
        Pairs in blocks that the mask leaves whole: they run at the speed of unmasked attention.
    cut : int64 array
        Pairs in blocks that the mask cuts through, the diagonal ones: at the speed of causal
        attention.
    live_rows : int64 array
        Rows that see at least one key.
    """

    full: Integers
    cut: Integers
    live_rows: Integers

    @property
    def total(self) -> Integers:
        """All visible pairs."""
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
        Rows and keys of one rank; 0 or more. With `world_size` at most 2**30 in all.
    rank, origin : int or int64 array
        In ``[0, world_size)``; arrays are taken element by element.
    world_size : int
        Ranks of the ring; 1 or more.
    sequence_layout : SequenceLayout or str, default "contiguous"
    causal : bool, default True
        Row at position p sees the keys at positions up to p. Otherwise every pair is visible.

    Returns
    -------
    VisiblePairs
        Of the shape of `rank` and `origin`.

    Raises
    ------
    InvalidProblemError
        If a number is out of its range or the layout is unknown.
    """
    layout = check_layout(length, world_size, sequence_layout)
    if length * world_size > 2**30:
        # Pairs are counted in 64 bits, and a count is less than twice the square of the length.
        raise InvalidProblemError(f"the sequence has {length * world_size} rows, at most 2**30")
    rank, origin = np.broadcast_arrays(
        np.asarray(rank, dtype=np.int64), np.asarray(origin, dtype=np.int64)
    )
    for name, value in (("rank", rank), ("origin", origin)):
        if value.size and not (value.min() >= 0 and value.max() < world_size):
            raise InvalidProblemError(f"{name} is {value}; it must be in [0, {world_size})")
    nothing = np.zeros(rank.shape, dtype=np.int64)
    if not causal:
        return VisiblePairs(nothing + length * length, nothing, nothing + length * (length > 0))

    full, cut, live_rows = nothing, nothing, nothing
    stride = world_size if layout is SequenceLayout.STRIPED else 1
    for row_start, rows in _runs(length, rank, world_size, layout):
        seen_from = rows + nothing
        for key_start, keys in _runs(length, origin, world_size, layout):
            if keys == 0:
                continue
            # Keys of the block that its first row sees, were there any number of them.
            offset = (row_start - key_start) // stride + 1
            pairs = _sum_of_clamps(rows + offset, keys) - _sum_of_clamps(offset, keys)
            full = full + np.where(offset >= keys, pairs, 0)
            cut = cut + np.where(offset >= keys, 0, pairs)
            seen_from = np.minimum(seen_from, np.clip(1 - offset, 0, rows))
        live_rows = live_rows + rows - seen_from
    return VisiblePairs(full, cut, live_rows)


def _runs(
    length: int, rank: Integers, world_size: int, layout: SequenceLayout
) -> list[tuple[Integers, int]]:
    """First position and rows of each run, as `sharding.positions` has them."""
    if layout is SequenceLayout.CONTIGUOUS:
        return [(rank * length, length)]
    if layout is SequenceLayout.STRIPED:
        return [(rank, length)]
    head = (length + 1) // 2
    tail = length - head
    return [(rank * head, head), (world_size * head + (world_size - 1 - rank) * tail, tail)]


def _sum_of_clamps(count: Integers, top: int) -> Integers:
    """Sum of ``min(t, top)`` over ``0 <= t < count``; 0 where `count` is negative."""
    rising = np.clip(count, 0, top + 1)
    return rising * (rising - 1) // 2 + np.maximum(count - (top + 1), 0) * top
