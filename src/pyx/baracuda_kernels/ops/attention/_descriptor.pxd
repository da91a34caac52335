# cython: language_level=3
from libc.stdint cimport int32_t, int64_t

from baracuda_kernels.ops.attention.c_api cimport baracuda_attention_step_params

cdef class AttentionDescriptor:
    cdef readonly int64_t batch_size
    cdef readonly int64_t num_heads
    cdef readonly int64_t num_kv_heads
    cdef readonly int64_t query_len
    cdef readonly int64_t key_len
    cdef readonly int64_t head_dim
    cdef readonly double scale
    cdef readonly bint is_causal
    cdef readonly object element
    cdef int32_t c_element
    cdef int32_t itemsize

    # Fills the fields of a step that the problem determines. Pointers, strides, maps and flags are 0.
    cdef void fill(self, baracuda_attention_step_params* step) noexcept
