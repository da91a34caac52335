# cython: language_level=3
from baracuda_kernels._core._ring_plan cimport RingArgs
from baracuda_kernels._core._tensor cimport TensorRef

cdef class RingAttentionArgs(RingArgs):
    cdef readonly TensorRef q
    cdef readonly TensorRef y
    cdef readonly TensorRef kv_scratch_a
    cdef readonly TensorRef kv_scratch_b
    cdef readonly TensorRef accumulator_scratch
    cdef readonly TensorRef lse
    cdef readonly TensorRef k
    cdef readonly TensorRef v
