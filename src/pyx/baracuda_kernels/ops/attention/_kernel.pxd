# cython: language_level=3
from libc.stdint cimport int32_t, int64_t

from baracuda_kernels._core._stream cimport Stream
from baracuda_kernels.ops.attention.c_api cimport (
    baracuda_attention_backward_params,
    baracuda_attention_step_params,
)
from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor
from baracuda_kernels.ops.attention._operands cimport AttentionOperands

# The loaded kernel of a plan: its device, and what it requires of operands.
cdef class AttentionKernel:
    cdef readonly int device       # CUDA ordinal, -1 on the host
    cdef int32_t number            # in the C ABI
    cdef object element
    cdef int alignment             # bytes, of addresses
    cdef int64_t stride_multiple   # elements, of strides
    cdef int64_t stride_limit      # elements: strides of inputs are in [0, limit); 0: any

    cdef AttentionOperands checks(self)
    # Enqueues one step, with the kernel's device current.
    cdef int step(self, baracuda_attention_step_params* step, Stream stream) except -1
    # Enqueues one step of a backward call, with the kernel's device current. Before the first step
    # it enqueues the preparation.
    cdef int backward(self, baracuda_attention_backward_params* params, Stream stream) except -1

# A family's kernel for a problem. Loads all kernels that its steps may launch.
cdef AttentionKernel load_kernel(object family, AttentionDescriptor problem, int device)
cdef AttentionKernel load_backward_kernel(object family, AttentionDescriptor problem, int device)
