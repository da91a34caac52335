# cython: language_level=3
from libc.stdint cimport int32_t

from baracuda_kernels._core._member cimport RingMember
from baracuda_kernels._core.c_api cimport baracuda_nccl_comm, baracuda_ring_call

cdef class NcclMember(RingMember):
    cdef baracuda_nccl_comm* comm  # NULL once it is closed
    cdef int users    # calls in flight without the GIL that end soon: close() waits for them
    cdef int waiting  # calls in flight that may wait long: close() is refused
    cdef readonly double timeout
    cdef int32_t wish  # enum baracuda_peer_wish
    cdef int32_t wait  # enum baracuda_peer_wait
    cdef object owner  # of a borrowed handle

    # Takes a new baracuda_nccl_comm, and its rank, world size and device.
    cdef void take(self, baracuda_nccl_comm* comm, double timeout, object owner) noexcept
    cdef int refuse_if_closed(self) except -1
    # Takes the communicator for one call that every rank makes. Raises if another rank has refused
    # the call. `seconds` is the call's deadline; 0 for none.
    cdef int begin(self, double seconds) except -1
    # Whether a call receives into memory that is not registered.
    cdef bint receives_elsewhere(self, const baracuda_ring_call* call) except -1
