# cython: language_level=3
from libc.stdint cimport int64_t

from baracuda_kernels._core._tensor cimport TensorRef

cdef enum:
    SCRATCH_ALIGNMENT = 16         # bytes, of workspaces

# Checks the operands of one call. It collects them for the check of overlaps at the end.
cdef class OperandChecks:
    cdef object element
    cdef int itemsize
    cdef int device
    cdef int alignment            # bytes, of pointers
    cdef list inputs              # (name, view)
    cdef list outputs

    cdef int common(self, str name, TensorRef view, bint output) except -1
    cdef int aligned(self, str name, TensorRef view, int alignment) except -1
    # Contiguous scratch of at least `elements` elements of the operands' type.
    cdef TensorRef scratch(self, str name, TensorRef view, int64_t elements)
    # Contiguous scratch of at least `nbytes` bytes, of any type.
    cdef TensorRef workspace(self, str name, TensorRef view, int64_t nbytes)
    # Raises if an output overlaps another operand.
    cdef int no_overlaps(self) except -1

# Raises if an output of one rank overlaps an operand of another. The OperandChecks of all ranks,
# which have collected their operands; None for a rank whose operands are not known.
cdef int no_shared_outputs(list ranks) except -1
# Whether the view is a dense buffer of bytes, which may hold a tensor of any shape.
cdef bint is_bytes(TensorRef view) noexcept
# Whether two element kinds are the same in memory.
cdef bint same_element(object a, object b)
# Raises if elements of one view may share memory.
cdef int no_self_overlap(str name, TensorRef view) except -1
