# cython: language_level=3
"""Makes the plan's device current for a launch, and the caller's device afterwards."""

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check


# Makes the device current. Returns the previous one, or -1 if it was current already.
cdef inline int32_t enter_device(int device) except -2:
    cdef int32_t current = -1
    if device < 0:
        return -1
    check(c_api.baracuda_cuda_current_device(&current))
    if current == device:
        return -1
    check(c_api.baracuda_cuda_set_device(device))
    return current


cdef inline int leave_device(int32_t previous) except -1:
    if previous >= 0:
        check(c_api.baracuda_cuda_set_device(previous))
    return 0
