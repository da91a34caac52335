# cython: language_level=3
from libc.stdint cimport int32_t

from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

cdef class RingAttentionDescriptor(AttentionDescriptor):
    cdef readonly object sequence_layout
    cdef int32_t c_layout
