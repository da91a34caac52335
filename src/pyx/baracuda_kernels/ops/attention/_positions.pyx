# cython: language_level=3
"""Where the rows of a rank lie in the sequence, as the kernels have it."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t

from baracuda_kernels.ops.attention cimport c_api as attention_api

from baracuda_kernels._core._enums import SequenceLayout


def layout_map(sequence_layout, int32_t rank, int32_t world_size, int64_t length):
    """The position map of one rank: ``(head, tail, stride, split)``.

    Local row ``i`` lies at ``head + stride*i`` below ``split``, and at
    ``tail + stride*(i - split)`` from it on.

    Parameters
    ----------
    sequence_layout : SequenceLayout or str
    rank, world_size : int
    length : int
        Rows of one rank.
    """
    cdef attention_api.baracuda_position_map one = attention_api.baracuda_layout_map(
        SequenceLayout.parse(sequence_layout), rank, world_size, length)
    return one.head, one.tail, one.stride, one.split


def layout_maps(sequence_layout, int32_t world_size, int64_t length):
    """The position map of each rank, rank after rank, as bytes: 4 int64 each."""
    cdef int32_t layout = SequenceLayout.parse(sequence_layout), rank
    cdef attention_api.baracuda_position_map one
    maps = []
    for rank in range(world_size):
        one = attention_api.baracuda_layout_map(layout, rank, world_size, length)
        maps.append(PyBytes_FromStringAndSize(<const char*>&one, sizeof(one)))
    return b"".join(maps)
