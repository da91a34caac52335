# cython: language_level=3
"""Where the rows of a rank's shard lie in the sequence: the maps that the kernels mask by."""

from libc.stdint cimport int32_t, int64_t

from baracuda_kernels._core cimport c_api

from baracuda_kernels._core._enums import SequenceLayout


def layout_map(layout, int32_t rank, int32_t world_size, int64_t length):
    """(head, tail, stride, split) of a rank's rows.

    Row i is at ``head + stride * i`` below ``split``, at ``tail + stride * (i - split)`` from it on.

    Parameters
    ----------
    layout : SequenceLayout or str
    rank, world_size : int
    length : int
        Rows of one rank.
    """
    cdef c_api.baracuda_position_map one = c_api.baracuda_layout_map(
        SequenceLayout.parse(layout), rank, world_size, length)
    return one.head, one.tail, one.stride, one.split
