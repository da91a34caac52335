# cython: language_level=3
"""Where the elements of a view lie: its shape and strides, and the checks of both."""

from cpython.number cimport PyNumber_Index
from libc.stdint cimport INT64_MAX, int64_t, uintptr_t

from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels._core._errors import InvalidProblemError, UnsupportedError


cdef extern from *:
    """
    #include <stdint.h>

    // True if every byte that a view spans has an address, and the span is below 2^63 bytes.
    static int baracuda_spans_memory(const int64_t* dims, const int64_t* strides, int ndim,
                                     int64_t itemsize, uintptr_t data) {
        int64_t count = itemsize, first = 0, last = itemsize, reach;
        uintptr_t end;
        int i;
        for (i = 0; i < ndim; ++i) {
            if (dims[i] == 0) return 1;
        }
        for (i = 0; i < ndim; ++i) {
            if (__builtin_mul_overflow(count, dims[i], &count)) return 0;
            if (dims[i] == 1) continue;
            if (__builtin_mul_overflow(strides[i], dims[i] - 1, &reach) ||
                __builtin_mul_overflow(reach, itemsize, &reach) ||
                __builtin_add_overflow(strides[i] < 0 ? first : last, reach,
                                       strides[i] < 0 ? &first : &last)) {
                return 0;
            }
        }
        return data >= (uintptr_t)0 - (uintptr_t)first &&
               !__builtin_add_overflow(data, (uintptr_t)last, &end);
    }
    """
    bint baracuda_spans_memory(const int64_t* dims, const int64_t* strides, int ndim,
                               int64_t itemsize, uintptr_t data) noexcept nogil


cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1


cdef class View:
    """Elements in memory, by a pointer, a shape and strides; the base of :class:`TensorRef`.

    Attributes
    ----------
    ndim, element, itemsize, device, writable
        As of :class:`TensorRef`.
    """

    cdef int64_t numel(self) noexcept:
        cdef int64_t n = 1
        cdef int i
        for i in range(self.ndim):
            n *= self.dims[i]
        return n

    cdef bint is_dense_bytes(self) noexcept:
        cdef int64_t expected = 1
        cdef int i
        for i in range(self.ndim - 1, -1, -1):
            if self.dims[i] != 1 and self.element_strides[i] != expected:
                return self.numel() == 0
            expected *= self.dims[i]
        return True

    cdef void extent(self, uintptr_t* low, uintptr_t* high) noexcept:
        cdef int64_t first = 0, last = 0
        cdef int i
        if self.numel() == 0:
            low[0] = high[0] = <uintptr_t>self.data
            return
        for i in range(self.ndim):
            if self.element_strides[i] < 0:
                first += self.element_strides[i] * (self.dims[i] - 1)
            else:
                last += self.element_strides[i] * (self.dims[i] - 1)
        low[0] = <uintptr_t>self.data + <uintptr_t>(first * self.itemsize)
        high[0] = <uintptr_t>self.data + <uintptr_t>((last + 1) * self.itemsize)

    cdef object set_element(self, str name, object element):
        # The name for a message is built only where it may be needed.
        self.element = element if type(element) is ElementKind \
            else ElementKind.parse(element, f"{name}: element")
        self.itemsize = self.element.itemsize
        if self.itemsize == 0:
            raise UnsupportedError(f"{name}: got {self.element}, must be a type of whole bytes")
        return None

    cdef object set_shape(self, str name, object shape, object strides):
        cdef int i
        shape = _sequence(name, "shape", shape)
        if strides is not None:
            strides = _sequence(name, "strides", strides)
        if len(shape) > MAX_DIMS:
            raise InvalidProblemError(
                f"{name}: got {len(shape)} dimensions, must have at most {MAX_DIMS}")
        if strides is not None and len(strides) != len(shape):
            raise InvalidProblemError(
                f"{name}: got {len(strides)} strides, must be one for each of {len(shape)} "
                "dimensions")
        self.ndim = len(shape)
        for i in range(self.ndim):
            self.dims[i] = integer_from(name, "shape", shape[i], 0)
        if strides is None:
            self.set_row_major()
        else:
            for i in range(self.ndim):
                self.element_strides[i] = integer_from(name, "strides", strides[i], -INT64_MAX)
        if not baracuda_spans_memory(self.dims, self.element_strides, self.ndim, self.itemsize,
                                     <uintptr_t>self.data):
            raise InvalidProblemError(
                f"{name}: got shape {shape} with strides {strides}, which spans more bytes than a "
                "memory has")
        if self.data == NULL and self.numel() > 0:
            raise InvalidProblemError(
                f"{name}: got a null address, must be memory that holds shape {shape}")
        return None

    cdef void set_row_major(self) noexcept:
        cdef int64_t stride = 1
        cdef int i
        for i in range(self.ndim - 1, -1, -1):
            self.element_strides[i] = stride
            stride *= self.dims[i]


cdef int64_t integer_from(str name, str what, object value, int64_t low) except? -1:
    cdef int overflow = 0
    cdef int64_t number
    if type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0 and number >= low:
            return number
    return integer(f"{name}: {what}", value, low, 2 ** 63)


cdef object index_of(str name, object value):
    if not isinstance(value, bool):
        try:
            return PyNumber_Index(value)
        except TypeError:  # arrays have __index__, too, and only those of one integer can use it
            pass
    raise InvalidProblemError(f"{name}: got {value!r}, must be an integer")


cdef int64_t integer(str name, object value, object low, object end) except? -1:
    number = index_of(name, value)
    if not low <= number < end:
        raise InvalidProblemError(f"{name}: got {number}, must be in [{low}, {end})")
    return number


cdef bint flag(str name, object value) except -1:
    if value is True or value is False:
        return value
    # NumPy's: "bool_" before NumPy 2.
    kind = type(value)
    if kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"):
        return bool(value)
    raise InvalidProblemError(f"{name}: got {value!r}, must be a bool")


cdef tuple _sequence(str name, str what, object given):
    try:
        return tuple(given)
    except TypeError:
        raise InvalidProblemError(
            f"{name}: got {what} {given!r}, must be a sequence of integers") from None
