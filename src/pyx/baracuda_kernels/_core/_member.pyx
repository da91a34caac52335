# cython: language_level=3
"""The base of communicators, and the binding of a plan's arguments to a communicator."""

from cpython.bytearray cimport PyByteArray_AsString
from cpython.bytes cimport PyBytes_AsString
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core._errors import CommunicatorError, InvalidProblemError


cdef class RingMember:
    """One rank of a ring; the base of all communicators. Has no constructor of its own.

    Attributes
    ----------
    rank, world_size : int
    device : int
        CUDA ordinal, -1 on the host.
    """

    @property
    def steps_enqueued(self):
        """Steps that the current or the last run has enqueued, 0 to world_size."""
        return 0 if self.endpoint == NULL else self.endpoint.steps_enqueued

    cdef int enter(self) except -1:
        self.refuse_if_unusable()
        if self.busy:
            raise CommunicatorError(
                f"communicator: got rank {self.rank} of {self.world_size} in another run, must be "
                "in none: use one communicator per concurrent run")
        self.busy = True
        return 0

    cdef int leave(self, int32_t status) except -1:
        self.busy = False
        if status == c_api.BARACUDA_INTERRUPTED:
            self.abandon()
        return check(status)

    cdef int abandon(self) except -1:
        return 0

    cdef int pass_on(self, object error, bint begun) except -1:
        return 0

    cdef int refuse_if_unusable(self) except -1:
        if self.endpoint == NULL:
            raise CommunicatorError("communicator: got a closed one, must be open")
        return 0

    cdef int accept(self, const c_api.baracuda_ring_call* call) except -1:
        return 0

    cdef tuple hops_of(self, const c_api.baracuda_ring_call* call):
        return ()

    cdef list all_gather(self, bytes mine):
        cdef int64_t size = len(mine)
        cdef bytearray everyone = bytearray(size * self.world_size)
        cdef char* source = PyBytes_AsString(mine)
        cdef char* target = PyByteArray_AsString(everyone)
        cdef int32_t status
        self.enter()
        with nogil:
            status = c_api.baracuda_ring_all_gather(self.endpoint, source, size, target)
        self.leave(status)
        return [bytes(everyone[r * size:(r + 1) * size]) for r in range(self.world_size)]


cdef class RingBinding:
    def __cinit__(self):
        self.call.struct_size = sizeof(self.call)
        self.call.payloads = self.payloads

    cdef int connect(self, object plan, RingMember member) except -1:
        self.hops = <c_api.baracuda_ring_hop*>malloc(member.world_size * sizeof(self.hops[0]))
        if self.hops == NULL:
            raise MemoryError("ring schedule")
        c_api.baracuda_ring_schedule(member.rank, member.world_size, self.hops)
        self.call.hops = self.hops
        self.call.endpoint = member.endpoint
        self.plan = plan
        self.member = member
        member.accept(&self.call)
        return 0

    def __dealloc__(self):
        free(self.hops)


cdef RingMember as_member(object communicator, int device):
    if isinstance(communicator, RingMember):
        return <RingMember>communicator
    from baracuda_kernels._core._transport import Transport, TransportCommunicator

    if isinstance(communicator, Transport):
        return TransportCommunicator.of(communicator, device)
    raise InvalidProblemError(
        f"comm: got {type(communicator).__name__}, must be a Communicator, a LocalCommunicator or "
        "an object with the Transport protocol")
