# cython: language_level=3
from baracuda_kernels._core._stream cimport Stream

# What plans are made with: only a select has it.
cdef object MADE_BY_SELECT

# Base of every plan: which kernel a descriptor got, on which device.
cdef class KernelPlan:
    cdef readonly object descriptor
    cdef readonly object sku
    cdef readonly str family
    cdef readonly int device       # CUDA ordinal, -1 on the host

    # Chooses by the op's spec for the stream's device; returns the chosen candidate's entry. The
    # stream may come first, as it did in an earlier version.
    cdef object choose(self, object spec, object descriptor, object stream, object preference,
                       object direction)
    # Raises unless the stream is on the plan's device.
    cdef int refuse_stream(self, Stream stream) except -1
