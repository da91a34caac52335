# cython: language_level=3
from baracuda_kernels._core._member cimport RingBinding
from baracuda_kernels._core._tensor cimport TensorRef

cdef class RingAttentionArgs:
    cdef readonly TensorRef q
    cdef readonly TensorRef y
    cdef readonly TensorRef kv_scratch_a
    cdef readonly TensorRef kv_scratch_b
    cdef readonly TensorRef accumulator_scratch
    cdef readonly TensorRef lse
    cdef readonly TensorRef k
    cdef readonly TensorRef v
    # The last plan and communicator that these arguments were checked for.
    cdef RingBinding binding
