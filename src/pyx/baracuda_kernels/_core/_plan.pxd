# cython: language_level=3
from baracuda_kernels._core._stream cimport Stream

# The argument of a plan's constructor. Only select has it.
cdef object MADE_BY_SELECT

# Base of every plan: the kernel of a descriptor, and its device.
cdef class KernelPlan:
    cdef readonly object descriptor
    cdef readonly object sku
    cdef readonly str family
    cdef readonly int device       # CUDA ordinal, -1 on the host

    # Chooses a kernel by the op's spec for the stream's device, and returns the candidate's entry.
    # `descriptor` and `stream` may be exchanged, as in an earlier version.
    cdef object choose(self, object spec, object descriptor, object stream, object preference,
                       object direction)
    # Raises unless the stream is on the plan's device.
    cdef int refuse_stream(self, Stream stream) except -1
