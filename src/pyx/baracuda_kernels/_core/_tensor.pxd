# cython: language_level=3
from libc.stdint cimport int32_t, int64_t, uintptr_t

cdef enum:
    MAX_DIMS = 8

cdef class TensorRef:
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
    # First byte and one past the last byte that the view touches.
    cdef void extent(self, uintptr_t* low, uintptr_t* high) noexcept

cdef class TensorMut(TensorRef):
    pass

cdef class DeviceSlice(TensorRef):
    pass

# View of any supported operand; name is the argument's, for messages. None stays None.
cdef TensorRef as_tensor(str name, object operand)
# An integer in [low, end); floats and bools are none.
cdef int64_t integer(str name, object value, object low, object end) except? -1

cdef DeviceSlice raw_slice(void* data, int64_t nbytes, int device, bint writable)
