# cython: language_level=3
"""Device memory that other processes can open."""

from libc.stdint cimport int32_t, int64_t, uintptr_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._device cimport enter_device, leave_device
from baracuda_kernels._core._status cimport check


cdef class DeviceBuffer:
    """Bytes of one ``cudaMalloc``, for :meth:`Communicator.register`; freed with the object.

    Attributes
    ----------
    nbytes : int
    device : int
        CUDA ordinal.
    """

    cdef void* data
    cdef readonly int64_t nbytes
    cdef readonly int device

    def __cinit__(self, int64_t nbytes, int device):
        cdef int32_t previous, status
        previous = enter_device(device)
        status = c_api.baracuda_cuda_allocate(nbytes, &self.data)
        leave_device(previous)
        check(status)
        self.nbytes = nbytes
        self.device = device

    @property
    def pointer(self):
        """The address as an int."""
        return <uintptr_t>self.data

    @property
    def __cuda_array_interface__(self):
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (<uintptr_t>self.data, False),
                "version": 3, "strides": None}

    def __repr__(self):
        return f"DeviceBuffer({self.nbytes}, device={self.device})"

    def __dealloc__(self):
        if self.data != NULL:
            c_api.baracuda_cuda_free(self.data)
