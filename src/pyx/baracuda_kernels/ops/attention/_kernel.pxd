# cython: language_level=3
from libc.stdint cimport int32_t, int64_t

from baracuda_kernels._core._stream cimport Stream
from baracuda_kernels._core.c_api cimport baracuda_attention_step_params
from baracuda_kernels.ops.attention._operands cimport OperandChecks

# The kernel that a plan chose: what it is, where it runs, what it needs of operands.
cdef class AttentionKernel:
    cdef readonly object sku
    cdef readonly str family
    cdef readonly int device       # CUDA ordinal, -1 on the host
    cdef int32_t number            # in the C ABI
    cdef object element
    cdef int alignment             # bytes, of addresses
    cdef int64_t stride_multiple   # elements, of strides
    cdef bint forward_strides      # inputs must not run backwards

    cdef OperandChecks checks(self)
    cdef int refuse_stream(self, Stream stream) except -1
    # Enqueues one step, with the kernel's device current.
    cdef int step(self, baracuda_attention_step_params* step, Stream stream) except -1

# Chooses by the op's spec for the stream's device, and loads what its steps may launch.
cdef AttentionKernel choose_kernel(object spec, Stream stream, object descriptor,
                                   object preference)
# Makes the device current for a launch; returns the previous one, or -1 if nothing was changed.
cdef int32_t enter_device(int device) except -2
cdef int leave_device(int32_t previous) except -1
