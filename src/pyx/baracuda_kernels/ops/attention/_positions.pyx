# cython: language_level=3
"""The positions of a rank's rows in the sequence, by the maps of the kernels."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t

from baracuda_kernels.ops.attention cimport c_api as attention_api

from baracuda_kernels._core._enums import SequenceLayout


def layout_map(sequence_layout, int32_t rank, int32_t world_size, int64_t length):
    """The position map of one rank: ``(head, tail, stride, split)``.

    Local row ``i`` has the position ``head + stride*i`` below ``split``, and
    ``tail + stride*(i - split)`` from ``split`` on.

    Parameters
    ----------
    sequence_layout : SequenceLayout or str
    rank, world_size : int
    length : int
        Number of rows of one rank.
    """
    cdef attention_api.baracuda_position_map one = attention_api.baracuda_layout_map(
        SequenceLayout.parse(sequence_layout, "sequence_layout"), rank, world_size, length)
    return one.head, one.tail, one.stride, one.split


def layout_maps(sequence_layout, int32_t world_size, int64_t length):
    """The position maps of all ranks, in rank order, as bytes: 4 int64 for each rank."""
    cdef int32_t layout = SequenceLayout.parse(sequence_layout, "sequence_layout"), rank
    cdef attention_api.baracuda_position_map one
    maps = []
    for rank in range(world_size):
        one = attention_api.baracuda_layout_map(layout, rank, world_size, length)
        maps.append(PyBytes_FromStringAndSize(<const char*>&one, sizeof(one)))
    return b"".join(maps)
