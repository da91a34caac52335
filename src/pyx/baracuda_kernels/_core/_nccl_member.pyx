# cython: language_level=3
"""A rank of a NCCL ring: its runs, its exchange, its faults and its end."""

from typing import NamedTuple

from cpython.bytearray cimport PyByteArray_AsString
from cpython.bytes cimport PyBytes_AsString
from libc.stdint cimport int32_t, int64_t, uintptr_t
from posix.unistd cimport usleep

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._member cimport RingMember
from baracuda_kernels._core._nccl_options cimport seconds_of
from baracuda_kernels._core._status cimport check, last_exception, raise_later, text_of
from baracuda_kernels._core._stream cimport Stream, as_stream
from baracuda_kernels._core._tensor cimport TensorRef, as_tensor

from baracuda_kernels._core._errors import (
    BaracudaError,
    CommunicatorError,
    InvalidProblemError,
    MisalignedOperandError,
    UnsupportedError,
)

_STATES = ("healthy", "failed", "aborted")
_NOT_REGISTERED = "the receive buffers are not registered"
# Registered buffers, by the address of their baracuda_nccl_comm. If a neighbour may still write to
# the buffers when the communicator ends, they are never freed.
_registered = {}


class HopExchange(NamedTuple):
    """How chunks move from one rank to the next.

    Attributes
    ----------
    sender, receiver : int
        Ranks.
    kind : str
        "peer": the sender's copy engine writes into the receiver's registered buffers, and takes no
        SM. Runs with receive buffers that are not registered use NCCL. "nccl": NCCL's kernels.
    reason : str
        Why the hop is not "peer"; empty where it is.
    """

    sender: int
    receiver: int
    kind: str
    reason: str


cdef class NcclMember(RingMember):
    """One rank of a NCCL ring; the base of :class:`Communicator`. Has no constructor of its own.

    Attributes
    ----------
    timeout : float
        Seconds that a run may take until :class:`NcclTimeoutError`; 0 for no limit.
    """

    def register(self, buffer):
        """Let the neighbours' copy engines write into ``buffer`` (collective).

        Every rank registers what its runs receive into: ``kv_scratch_a``, ``kv_scratch_b`` and, for
        gradients, ``kv_gradient_scratch``. It registers each of them, in the same order on every
        rank, or one buffer that holds all of them at the same offsets on every rank. The
        communicator keeps the buffer alive. A run whose receive buffers are not registered goes by
        NCCL; with ``exchange="peer"`` it is refused.

        Parameters
        ----------
        buffer : tensor
            Any shape and element type; dense, on the communicator's device, in memory of
            ``cudaMalloc`` (the default of PyTorch's allocator). Other processes cannot open memory
            of a pool (``cudaMallocAsync``) or of the driver's virtual memory (PyTorch's expandable
            segments).

        Raises
        ------
        UnsupportedError
            On every rank, if the previous rank cannot open a rank's memory.
        InvalidProblemError
            Not a tensor, not dense, or not on the communicator's device, here or on another rank of
            this machine. On a rank that had begun the call, the ring has failed.
        """
        cdef TensorRef view
        cdef c_api.baracuda_peer* peer
        cdef int64_t nbytes
        cdef int32_t status
        try:
            self.refuse_if_unusable()
            view = _receive_buffer(buffer, self.device)
        except Exception as error:
            self.pass_on(error, False)
            raise
        if self.world_size == 1:
            return
        nbytes = view.numel() * view.itemsize
        self.enter()
        peer = c_api.baracuda_nccl_peer(self.comm)
        with nogil:
            status = c_api.baracuda_peer_register(peer, view.data, nbytes)
        if status == c_api.BARACUDA_OK:
            _registered.setdefault(<uintptr_t>self.comm, []).append(buffer)
        self.leave(status)

    @property
    def exchange(self):
        """How each hop of the ring moves chunks, as a tuple of :class:`HopExchange` in the order of
        the senders; empty at one rank.

        Raises
        ------
        CommunicatorError
            The communicator is closed.
        """
        cdef const c_api.baracuda_peer* peer
        cdef int32_t rank, reason
        self.refuse_if_closed()
        peer = c_api.baracuda_nccl_peer(self.comm)
        hops = []
        for rank in range(self.world_size if peer != NULL else 0):
            reason = c_api.baracuda_peer_reason_of(peer, rank)
            why = ""
            if reason != c_api.BARACUDA_PEER_WORKS:
                detail = c_api.baracuda_peer_detail_of(peer, rank).decode()
                why = c_api.baracuda_peer_reason_text(reason).decode()
                why += f": {detail}" if detail else ""
            hops.append(HopExchange(rank, (rank + 1) % self.world_size,
                                    "nccl" if why else "peer", why))
        return tuple(hops)

    @property
    def handle(self):
        """The ``ncclComm_t`` as an int."""
        self.refuse_if_unusable()
        return <uintptr_t>c_api.baracuda_nccl_handle(self.comm)

    @property
    def owned(self):
        """Whether close() destroys the NCCL communicator; False for a borrowed one."""
        self.refuse_if_closed()
        return bool(c_api.baracuda_nccl_is_owned(self.comm))

    @property
    def state(self):
        """"healthy", "failed", "aborted" or "closed"."""
        if self.comm == NULL:
            return "closed"
        return _STATES[c_api.baracuda_nccl_state(self.comm)]

    def async_error(self):
        """The error that NCCL met in the background, as an exception object, or None."""
        cdef c_api.baracuda_nccl_comm* comm
        cdef int32_t status
        self.refuse_if_closed()
        comm = self.comm
        self.users += 1
        with nogil:
            status = c_api.baracuda_nccl_async_error(comm)
        self.users -= 1
        return None if status == c_api.BARACUDA_OK else last_exception(status)

    def abort(self):
        """Abort an owned communicator, from any thread. A borrowed one is only marked failed."""
        cdef c_api.baracuda_nccl_comm* comm
        cdef int32_t status
        self.refuse_if_closed()
        comm = self.comm
        self.users += 1
        with nogil:
            status = c_api.baracuda_nccl_abort(comm)
        self.users -= 1
        check(status)

    def refuse(self, error):
        """Tell the other ranks that this rank will not make its next run.

        Call it instead of ``plan.run`` if this rank cannot run what the other ranks are about to
        run. Plans tell the other ranks of their own refusals.

        The other ranks of this machine raise the error, with this rank's number, from that run. If
        none of them has begun the run, nothing is sent and the ring stays usable. If one has begun
        it, the ring fails on all of them within a tenth of a second. Ranks of other machines wait
        until their deadline.

        Parameters
        ----------
        error : BaracudaError
            What this rank raises.

        Raises
        ------
        InvalidProblemError
            ``error`` is not a :class:`BaracudaError`.
        CommunicatorError
            The communicator is closed or has failed.
        """
        if not isinstance(error, BaracudaError):
            raise InvalidProblemError(
                f"error: got {type(error).__name__}, must be a BaracudaError")
        self.refuse_if_unusable()
        self.pass_on(error, False)

    def synchronize(self, stream, timeout=None):
        """Wait until ``stream`` is done, or the ring fails.

        Parameters
        ----------
        stream : Stream or what :class:`Stream` takes
            The stream of the runs.
        timeout : float, optional
            Seconds; the communicator's own by default.

        Raises
        ------
        NcclTimeoutError
            Not done in time; an owned communicator is aborted.
        NcclError
            NCCL met an error in the background; an owned communicator is aborted.
        CommunicatorError
            The communicator is closed or has failed. A ring fails as a whole: this may be the
            failure of another rank, in a run that comes after those on ``stream``.
        """
        cdef Stream one = as_stream(stream)
        cdef c_api.baracuda_nccl_comm* comm
        cdef int32_t status
        cdef double seconds = self.timeout if timeout is None else seconds_of(timeout)
        self.refuse_if_unusable()
        comm = self.comm
        self.waiting += 1
        with nogil:
            status = c_api.baracuda_nccl_synchronize(comm, one.handle, seconds)
        self.waiting -= 1
        check(status)

    def close(self):
        """End the communicator. Idempotent.

        NCCL's communicator is destroyed, or aborted if it has failed; a borrowed one is left alone.
        The call waits for the other ranks of the machine. Ctrl-C ends that wait; the communicator
        is closed then, too.

        Raises
        ------
        CommunicatorError
            Another thread runs, splits or synchronizes with it; :meth:`abort` ends those calls.
        """
        cdef c_api.baracuda_nccl_comm* comm = self.comm
        cdef int32_t status, stays
        if comm == NULL:
            return
        if self.busy:
            raise CommunicatorError("communicator: close() while a run is in flight; abort() it")
        if self.waiting:
            raise CommunicatorError(
                "communicator: close() while another thread waits in synchronize(); abort() it")
        # From here on no call begins. Calls in flight do not block, and are waited for.
        self.comm = NULL
        self.endpoint = NULL
        while self.users:
            with nogil:
                usleep(50)
        with nogil:
            stays = c_api.baracuda_nccl_close_peers(comm)
            status = c_api.baracuda_nccl_destroy(comm)
        if not stays:
            _registered.pop(<uintptr_t>comm, None)
        check(status)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    cdef int refuse_if_closed(self) except -1:
        if self.comm == NULL:
            raise CommunicatorError("communicator: got a closed one, must be open")
        return 0

    cdef int refuse_if_unusable(self) except -1:
        cdef int32_t state = 0
        self.refuse_if_closed()
        # Raises, once, the fault that another rank met between two calls.
        check(c_api.baracuda_nccl_poll(self.comm, &state))
        if state != 0:
            raise CommunicatorError(
                f"communicator: rank {self.rank} of {self.world_size} is {self.state} after an "
                "earlier error; make a new one")
        return 0

    cdef int accept(self, const c_api.baracuda_ring_call* call) except -1:
        if self.wish == c_api.BARACUDA_PEER_REQUIRED and self.receives_elsewhere(call):
            raise InvalidProblemError(
                f"kv_scratch_a, kv_scratch_b, kv_gradient_scratch: {_NOT_REGISTERED}; with "
                "exchange=\"peer\" every rank must give what it receives into to comm.register()")
        return 0

    cdef tuple hops_of(self, const c_api.baracuda_ring_call* call):
        hops = self.exchange
        if self.receives_elsewhere(call):
            hops = tuple([hop._replace(kind="nccl", reason=hop.reason or _NOT_REGISTERED)
                          for hop in hops])
        return hops

    cdef bint receives_elsewhere(self, const c_api.baracuda_ring_call* call) except -1:
        cdef c_api.baracuda_ring_round round
        cdef const c_api.baracuda_peer* peer = c_api.baracuda_nccl_peer(self.comm)
        cdef int32_t number, i
        if peer == NULL:
            return False
        for number in range(self.world_size * call.program.parts + 1):
            if not c_api.baracuda_ring_has_exchange(call, number):
                continue
            c_api.baracuda_ring_messages(call, number, &round)
            for i in range(round.receive_count):
                if not c_api.baracuda_peer_is_registered(peer, round.receives[i].data,
                                                         round.receives[i].bytes):
                    return True
        return False

    cdef int enter(self) except -1:
        return self.begin(self.timeout)

    cdef int begin(self, double seconds) except -1:
        RingMember.enter(self)
        cdef int32_t status = c_api.baracuda_nccl_arm(self.comm, seconds)
        if status != c_api.BARACUDA_OK:
            self.busy = False
            check(status)
        return 0

    cdef int pass_on(self, object error, bint begun) except -1:
        cdef bytes reason
        if self.comm != NULL and self.world_size > 1:
            reason = text_of(error).encode(errors="replace")
            check(c_api.baracuda_nccl_refuse(self.comm, _status_of(error),
                                             PyBytes_AsString(reason), begun))
        return 0

    cdef list all_gather(self, bytes mine):
        cdef int64_t size = len(mine)
        cdef bytearray everyone = bytearray(size * self.world_size)
        cdef char* source = PyBytes_AsString(mine)
        cdef char* target = PyByteArray_AsString(everyone)
        cdef double seconds = self.timeout
        cdef int32_t status
        RingMember.enter(self)  # without a run's deadline: the gather has its own
        with nogil:
            status = c_api.baracuda_nccl_all_gather(self.comm, source, size, target, seconds)
        self.leave(status)
        return [bytes(everyone[r * size:(r + 1) * size]) for r in range(self.world_size)]

    cdef int leave(self, int32_t status) except -1:
        # The error record is read before disarm() may overwrite it: the first failure is the cause.
        error = None if status == c_api.BARACUDA_OK else last_exception(status)
        cdef int32_t late = c_api.baracuda_nccl_disarm(self.comm)
        self.busy = False
        if status == c_api.BARACUDA_INTERRUPTED:
            self.abandon()
            raise error
        if late != c_api.BARACUDA_OK:
            raise last_exception(late) from error
        if error is not None:
            raise error
        return 0

    cdef int abandon(self) except -1:
        if self.world_size > 1:
            c_api.baracuda_nccl_abort(self.comm)
        return 0

    cdef void take(self, c_api.baracuda_nccl_comm* comm, double timeout, object owner) noexcept:
        self.comm = comm
        self.endpoint = c_api.baracuda_nccl_endpoint(comm)
        self.rank = c_api.baracuda_nccl_rank(comm)
        self.world_size = c_api.baracuda_nccl_world_size(comm)
        self.device = self.endpoint.device
        self.timeout = timeout
        self.owner = owner

    def __dealloc__(self):
        cdef int32_t status, stays
        if self.comm != NULL:
            with nogil:
                stays = c_api.baracuda_nccl_close_peers(self.comm)
                status = c_api.baracuda_nccl_destroy(self.comm)
            if not stays and _registered is not None:
                _registered.pop(<uintptr_t>self.comm, None)
            raise_later(status)


cdef TensorRef _receive_buffer(object buffer, int device):
    """The view of a buffer that neighbours may write to, if they can."""
    cdef TensorRef view = as_tensor("buffer", buffer)
    if view is None:
        raise InvalidProblemError("buffer: got None, must be a tensor")
    if view.device != device:
        raise InvalidProblemError(
            f"buffer: got memory on device {view.device}, must be on {device}")
    if not view.is_dense_bytes():
        raise InvalidProblemError("buffer: got a view with gaps, must be dense")
    return view


# The status code that the other ranks get for an error.
cdef int32_t _status_of(object error) noexcept:
    if isinstance(error, UnsupportedError):
        return c_api.BARACUDA_UNSUPPORTED
    if isinstance(error, MisalignedOperandError):
        return c_api.BARACUDA_MISALIGNED
    if isinstance(error, CommunicatorError) or not isinstance(error, BaracudaError):
        return c_api.BARACUDA_ABORTED
    return c_api.BARACUDA_INVALID_ARGUMENT
