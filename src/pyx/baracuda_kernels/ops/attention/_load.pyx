# cython: language_level=3
"""Loading kernels, and making a plan's device current around a launch."""

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check


cdef int load_kernels(int32_t kernel, baracuda_attention_step_params* step,
                      int device) except -1:
    cdef int32_t previous = enter_device(device), status
    with nogil:
        status = c_api.baracuda_attention_load(kernel, step)
    leave_device(previous)
    return check(status)


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
