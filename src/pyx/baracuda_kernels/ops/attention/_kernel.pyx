# cython: language_level=3
"""Choosing, loading and launching the kernel of an attention plan."""

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check
from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

from baracuda_kernels._core._errors import InvalidProblemError
from baracuda_kernels._core._selection import Architecture
from baracuda_kernels.ops.attention import _families


cdef class AttentionKernel:
    cdef OperandChecks checks(self):
        return OperandChecks(self.element, self.device, self.alignment, self.stride_multiple,
                             self.forward_strides)

    cdef int refuse_stream(self, Stream stream) except -1:
        if stream.device != self.device:
            raise InvalidProblemError(
                f"stream: is on device {stream.device}, the plan was selected for {self.device}")
        return 0

    cdef int step(self, baracuda_attention_step_params* step, Stream stream) except -1:
        cdef int32_t previous = enter_device(self.device), status
        with nogil:
            status = c_api.baracuda_attention_step(self.number, step, stream.handle)
        leave_device(previous)
        return check(status)


cdef AttentionKernel choose_kernel(object spec, Stream stream, object descriptor,
                                   object preference):
    cdef AttentionKernel self = AttentionKernel.__new__(AttentionKernel)
    cdef AttentionDescriptor problem
    cdef c_api.baracuda_attention_step_params step
    cdef int32_t previous, status
    chosen = spec.explain(descriptor, Architecture.of_device(stream.device), preference).require()
    problem = descriptor  # explain has refused whatever is none
    self.sku = chosen.sku
    self.family = chosen.family
    self.device = stream.device
    self.number = _families.kernel_of(chosen.family)
    self.element = problem.element
    self.alignment, self.stride_multiple, self.forward_strides = _families.layout_needs(
        chosen.family, problem.itemsize)
    problem.fill(&step)
    previous = enter_device(self.device)
    with nogil:
        status = c_api.baracuda_attention_load(self.number, &step)
    leave_device(previous)
    check(status)
    return self


cdef int32_t enter_device(int device) except -2:
    cdef int32_t current = -1
    if device < 0:
        return -1
    check(c_api.baracuda_cuda_current_device(&current))
    if current == device:
        return -1
    check(c_api.baracuda_cuda_set_device(device))
    return current


cdef int leave_device(int32_t previous) except -1:
    if previous >= 0:
        check(c_api.baracuda_cuda_set_device(previous))
    return 0
