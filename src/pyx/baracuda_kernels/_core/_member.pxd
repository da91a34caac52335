# cython: language_level=3
from libc.stdint cimport int32_t

from baracuda_kernels._core.c_api cimport BARACUDA_RING_MAX_PAYLOADS, baracuda_ring_call, \
    baracuda_ring_endpoint, baracuda_ring_hop, baracuda_ring_payload

cdef class RingMember:
    cdef baracuda_ring_endpoint* endpoint
    cdef readonly int rank
    cdef readonly int world_size
    cdef readonly int device
    cdef bint busy
    cdef object __weakref__

    # Takes the communicator for one call; refuses while another runs, or after a failure.
    cdef int enter(self) except -1
    # Gives it back and raises what the call's status says.
    cdef int leave(self, int32_t status) except -1
    # Ends the ring after a signal ended a call of this rank: the others would wait for it.
    cdef int abandon(self) except -1
    # Tells the other ranks, where they can be told, that this one refuses its next call with an error
    # or, where it has begun, the one that it is in: they would wait for it.
    cdef int pass_on(self, object error, bint begun) except -1
    # Raises why the communicator cannot be used now, if it cannot.
    cdef int refuse_if_unusable(self) except -1
    # Raises why a call cannot run here that is ready but for that.
    cdef int accept(self, const baracuda_ring_call* call) except -1
    # Which way each hop of a call goes.
    cdef tuple hops_of(self, const baracuda_ring_call* call)
    # Collective: every rank's bytes (of one length), in rank order. Waits for the peers.
    cdef list all_gather(self, bytes mine)

# Arguments of one plan, checked against one rank of one communicator: the C call, ready to run.
# A plan's own subclass holds the problem that its program is given.
cdef class RingBinding:
    cdef baracuda_ring_call call
    cdef baracuda_ring_payload payloads[BARACUDA_RING_MAX_PAYLOADS]
    cdef baracuda_ring_hop* hops
    cdef object plan
    cdef RingMember member

    # Fills what depends on the communicator, the endpoint and the schedule, and asks it whether it
    # can carry the call, whose payloads are filled.
    cdef int connect(self, object plan, RingMember member) except -1

# The member that an object given as a communicator stands for.
cdef RingMember as_member(object communicator, int device)
