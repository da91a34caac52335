# cython: language_level=3
from libc.stdint cimport int32_t

from baracuda_kernels._core._operands cimport OperandChecks
from baracuda_kernels._core.c_api cimport BARACUDA_RING_MAX_PAYLOADS, baracuda_ring_call, \
    baracuda_ring_endpoint, baracuda_ring_hop, baracuda_ring_payload

cdef class RingMember:
    cdef baracuda_ring_endpoint* endpoint
    cdef readonly int rank
    cdef readonly int world_size
    cdef readonly int device
    cdef bint busy
    cdef object __weakref__

    # Takes the communicator for one call. Refuses it during another call, or after a failure.
    cdef int enter(self) except -1
    # Gives the communicator back, and raises the error of the call's status.
    cdef int leave(self, int32_t status) except -1
    # Ends the ring after a signal has ended a call of this rank, since the other ranks wait for it.
    cdef int abandon(self) except -1
    # Tells the other ranks, which would wait for this one, that this rank refuses its next call
    # with an error, or if `begun` its current call. Only NCCL rings can tell.
    cdef int pass_on(self, object error, bint begun) except -1
    # Raises if the communicator cannot be used now.
    cdef int refuse_if_unusable(self) except -1
    # Raises if this communicator cannot run a call that has passed all other checks.
    cdef int accept(self, const baracuda_ring_call* call) except -1
    # The exchange that each hop of a call uses.
    cdef tuple hops_of(self, const baracuda_ring_call* call)
    # Collective: the bytes of every rank, all of one length, in rank order. Waits for the peers.
    cdef list all_gather(self, bytes mine)

# Arguments of a plan, checked for one rank of a communicator: the C call, ready to run. The plan's
# subclass holds the problem for its program.
cdef class RingBinding:
    cdef baracuda_ring_call call
    cdef baracuda_ring_payload payloads[BARACUDA_RING_MAX_PAYLOADS]
    cdef baracuda_ring_hop* hops
    cdef object plan
    cdef RingMember member
    cdef OperandChecks operands  # of this rank, collected; or None
    # Ranks of a local ring whose operands were compared with each other have the same object here.
    cdef object company

    # Fills the endpoint and the schedule of a call whose payloads are filled, and checks that the
    # communicator can run it.
    cdef int connect(self, object plan, RingMember member) except -1

# The member for an object that a caller gave as communicator.
cdef RingMember as_member(object communicator, int device)
