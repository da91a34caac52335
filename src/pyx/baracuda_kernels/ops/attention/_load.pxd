# cython: language_level=3
from libc.stdint cimport int32_t

from baracuda_kernels._core.c_api cimport baracuda_attention_step_params

# Loads every kernel that steps of this problem may launch on the device (-1: the host).
cdef int load_kernels(int32_t kernel, baracuda_attention_step_params* step, int device) except -1
# Makes the device current for a launch; returns the previous one, or -1 if nothing was changed.
cdef int32_t enter_device(int device) except -2
cdef int leave_device(int32_t previous) except -1
