# cython: language_level=3
from libc.stdint cimport int64_t, uintptr_t

cdef enum:
    MAX_DIMS = 8

cdef class View:
    cdef void* data
    cdef readonly int ndim
    cdef int64_t dims[MAX_DIMS]
    cdef int64_t element_strides[MAX_DIMS]  # the attribute `strides` is a tuple of them
    cdef readonly object element       # ElementKind
    cdef readonly int itemsize         # bytes
    cdef readonly int device           # CUDA ordinal, -1 on the host
    cdef readonly bint writable
    cdef object owner                  # keeps the memory alive

    cdef int64_t numel(self) noexcept
    cdef bint is_dense_bytes(self) noexcept
    # The first byte that the view touches, and one past the last.
    cdef void extent(self, uintptr_t* low, uintptr_t* high) noexcept

    # These check what the caller gave; name is the argument's, for messages.
    cdef object set_element(self, str name, object element)
    # Strides in elements, None for row-major. The data and the element are set before.
    cdef object set_shape(self, str name, object shape, object strides)
    cdef void set_row_major(self) noexcept

# value as a Python int. Floats, bools and arrays of several numbers are refused.
cdef object index_of(str name, object value)
# value as an int64, if it is an integer in [low, end).
cdef int64_t integer(str name, object value, object low, object end) except? -1
# The same for [low, 2**63). The argument's name in messages is "name: what"; it is built only for
# an error.
cdef int64_t integer_from(str name, str what, object value, int64_t low) except? -1
# value as a bool. Only Python's and NumPy's bools are taken.
cdef bint flag(str name, object value) except -1
