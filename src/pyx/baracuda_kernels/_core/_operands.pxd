# cython: language_level=3
from libc.stdint cimport int64_t

from baracuda_kernels._core._tensor cimport TensorRef

cdef enum:
    SCRATCH_ALIGNMENT = 16         # bytes, of workspaces

# Checks of one call's operands. Collects them as it goes, for the overlap check at the end.
cdef class OperandChecks:
    cdef object element
    cdef int itemsize
    cdef int device
    cdef int alignment            # bytes, of pointers
    cdef list inputs              # (name, view)
    cdef list outputs

    cdef int common(self, str name, TensorRef view, bint output) except -1
    cdef int aligned(self, str name, TensorRef view, int alignment) except -1
    # Contiguous scratch of at least so many elements of the operands' type.
    cdef TensorRef scratch(self, str name, TensorRef view, int64_t elements)
    # Contiguous scratch of at least so many bytes, of any type.
    cdef TensorRef workspace(self, str name, TensorRef view, int64_t nbytes)
    # Outputs may overlap nothing.
    cdef int no_overlaps(self) except -1

# A dense buffer of bytes, which may stand for a tensor of any shape.
cdef bint is_bytes(TensorRef view) noexcept
# Whether two kinds are alike in memory.
cdef bint same_element(object a, object b)
# Raises if elements of one view share memory.
cdef int no_self_overlap(str name, TensorRef view) except -1
