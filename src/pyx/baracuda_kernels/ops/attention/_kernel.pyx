# cython: language_level=3
"""Loading and launching the kernel of an attention plan."""

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels._core._device cimport enter_device, leave_device
from baracuda_kernels._core._status cimport check

ctypedef int32_t (*_Load)(int32_t kernel, const baracuda_attention_step_params* problem) noexcept \
    nogil


cdef class AttentionKernel:
    cdef AttentionOperands checks(self):
        return AttentionOperands(self.element, self.device, self.alignment, self.stride_multiple,
                                 self.stride_limit)

    cdef int step(self, baracuda_attention_step_params* step, Stream stream) except -1:
        cdef int32_t previous = enter_device(self.device), status
        with nogil:
            status = attention_api.baracuda_attention_step(self.number, step, stream.handle)
        leave_device(previous)
        return check(status)

    cdef int backward(self, baracuda_attention_backward_params* params, Stream stream) except -1:
        cdef int32_t previous = enter_device(self.device), status = c_api.BARACUDA_OK
        with nogil:
            if params.step.flags & attention_api.BARACUDA_STEP_FIRST:
                status = attention_api.baracuda_attention_backward_prepare(
                    self.number, params, stream.handle)
            if status == c_api.BARACUDA_OK:
                status = attention_api.baracuda_attention_backward_step(
                    self.number, params, stream.handle)
        leave_device(previous)
        return check(status)


cdef AttentionKernel load_kernel(object family, AttentionDescriptor problem, int device):
    return _load(family, family.kernel, problem, device, attention_api.baracuda_attention_load)


cdef AttentionKernel load_backward_kernel(object family, AttentionDescriptor problem, int device):
    return _load(family, family.backward_kernel, problem, device,
                 attention_api.baracuda_attention_backward_load)


cdef AttentionKernel _load(object family, int32_t number, AttentionDescriptor problem, int device,
                           _Load load):
    cdef AttentionKernel self = AttentionKernel.__new__(AttentionKernel)
    cdef attention_api.baracuda_attention_step_params step
    cdef int32_t previous, status
    self.device = device
    self.number = number
    self.element = problem.element
    self.alignment, self.stride_multiple, self.stride_limit = family.layout_needs(
        problem.itemsize)
    problem.fill(&step)
    previous = enter_device(device)
    with nogil:
        status = load(self.number, &step)
    leave_device(previous)
    check(status)
    return self
