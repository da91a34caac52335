# cython: language_level=3
"""Counts the visible pairs of rows and keys, by the intervals of the kernels."""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels.ops.attention.c_api cimport baracuda_visible_pairs
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core._enums import SequenceLayout


def visible_pairs(sequence_layout, int32_t world_size, int64_t length, bint causal,
                  bytes rank not None, bytes origin not None):
    """Count the visible pairs of the rows of ``rank`` and the keys of ``origin``.

    Parameters
    ----------
    sequence_layout : SequenceLayout or str
    world_size : int
    length : int
        Number of rows, and of keys, of one rank.
    causal : bool
    rank, origin : bytes
        The bytes of two int64 arrays of the same length.

    Returns
    -------
    bytes
        Four int64 for each entry: visible pairs in blocks that the mask does not cut, visible pairs
        in other blocks, and the range ``[first, end)`` of rows that see a key.
    """
    cdef int32_t layout = SequenceLayout.parse(sequence_layout, "sequence_layout")
    cdef Py_ssize_t count = min(len(rank), len(origin)) // sizeof(int64_t), i
    cdef const int64_t* ranks = <const int64_t*>PyBytes_AsString(rank)
    cdef const int64_t* origins = <const int64_t*>PyBytes_AsString(origin)
    counted = PyBytes_FromStringAndSize(NULL, count * sizeof(baracuda_visible_pairs))
    cdef baracuda_visible_pairs* pairs = <baracuda_visible_pairs*>PyBytes_AsString(
        counted)
    cdef attention_api.baracuda_attention_step_params step
    memset(&step, 0, sizeof(step))
    step.struct_size = sizeof(step)
    step.element = step.lse_element = attention_api.BARACUDA_F32
    step.flags = attention_api.BARACUDA_STEP_CAUSAL if causal else 0
    step.batch = step.heads = step.kv_heads = step.head_dim = 1
    step.query_len = step.key_len = length
    for i in range(count):
        step.q_map = attention_api.baracuda_layout_map(
            layout, <int32_t>ranks[i], world_size, length)
        step.k_map = attention_api.baracuda_layout_map(
            layout, <int32_t>origins[i], world_size, length)
        check(attention_api.baracuda_attention_visible_pairs(&step, pairs + i))
    return counted
