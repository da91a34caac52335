# cython: language_level=3
from libc.stdint cimport int64_t

from baracuda_kernels._core._view cimport View

cdef class TensorRef(View):
    pass

cdef class TensorMut(TensorRef):
    pass

cdef class DeviceSlice(TensorRef):
    pass

# View of any supported operand; name is the argument's, for messages. None stays None.
cdef TensorRef as_tensor(str name, object operand)

cdef DeviceSlice raw_slice(void* data, int64_t nbytes, int device, bint writable)
