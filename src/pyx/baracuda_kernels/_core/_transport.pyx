# cython: language_level=3
"""A ring over any transport that can send and receive: MPI, a torch process group, a test."""

import weakref
from functools import partial
from typing import Protocol, runtime_checkable

from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport calloc, free

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._member cimport RingMember
from baracuda_kernels._core._status cimport check, last_exception
from baracuda_kernels._core._stream cimport Stream
from baracuda_kernels._core._tensor cimport raw_slice
from baracuda_kernels._core._view cimport integer

from baracuda_kernels._core._errors import CommunicatorError, InvalidProblemError


@runtime_checkable
class Transport(Protocol):
    """Point-to-point messages of one rank, for :class:`TransportCommunicator`.

    In the first exchange of a run, every rank calls in this order: ``group_start()``, ``send`` of
    K, ``send`` of V, ``recv`` of K, ``recv`` of V, ``group_end()``. In later exchanges K and V are
    adjacent and one message: ``group_start()``, ``send``, ``recv``, ``group_end()``. In a backward
    the exchanges from the third on also send and receive a sum of dK and dV, as one message; the
    last exchanges send only sums. Messages between two ranks must arrive in the order of their
    sends. Buffers are valid until ``group_end`` returns.

    On the host (``stream`` is None) a transfer must be complete when ``group_end`` returns, and
    ``memoryview(buffer)`` gives its bytes. On a GPU it must be ordered on ``stream``, and
    ``buffer.__cuda_array_interface__`` gives its bytes. An exception ends the run and is raised by
    it; ``group_end`` is still called if ``group_start`` returned. What methods return is not read,
    but an awaitable, as of an ``async def``, is refused.

    A rank's run ends early after an exception, after Ctrl-C, and if a launch of a backward fails:
    a sum without this rank's share would be a wrong gradient. Later calls of this rank are then
    refused. The other ranks wait for this rank's messages until the transport's own timeout. So
    give the transport timeouts, or the optional method ``abort()``. The ring calls ``abort()``
    once, when a run of this rank ends early. The method must make the other ranks' sends and
    receives raise, and must not wait for those ranks.

    Attributes
    ----------
    rank, world_size : int
    """

    rank: int
    world_size: int

    def group_start(self):
        """Begin a group of messages, up to ``group_end``. None of them may wait for another."""

    def send(self, buffer, peer, stream):
        """Send a chunk's bytes.

        Parameters
        ----------
        buffer : DeviceSlice
            The bytes to send.
        peer : int
            The rank to send to.
        stream : Stream or None
            The stream of the transfer; None on the host.
        """

    def recv(self, buffer, peer, stream):
        """Receive as many bytes as the buffer has.

        Parameters
        ----------
        buffer : DeviceSlice
            The memory to write.
        peer : int
            The rank to receive from.
        stream : Stream or None
            As in ``send``.
        """

    def group_end(self):
        """Start the messages since ``group_start``, and on the host complete them."""


# id of a transport -> a weak reference to it, and its communicators by device. By id, since
# transports that compare equal may be different connections.
_members = {}


def _forget(dead, key):
    if _members.get(key, (None,))[0] is dead:
        del _members[key]


cdef object _weak(object transport, object forget):
    try:
        return weakref.ref(transport, forget)
    except TypeError as error:
        raise InvalidProblemError(
            f"transport: got a {type(transport).__name__}, must allow weak references (with "
            "__slots__, one of them is __weakref__)") from error


cdef object _require_protocol(object transport):
    for name in ("rank", "world_size"):
        if not hasattr(transport, name):
            raise InvalidProblemError(
                f"transport: got a {type(transport).__name__} without {name}, must have it")
    for name in ("group_start", "send", "recv", "group_end"):
        if not callable(getattr(transport, name, None)):
            raise InvalidProblemError(
                f"transport: got a {type(transport).__name__} without a method {name}, must have it")
    return None


cdef class TransportCommunicator(RingMember):
    """TransportCommunicator(transport, device=-1)

    A communicator over a caller's :class:`Transport`.

    Parameters
    ----------
    transport : Transport
    device : int, default -1
        CUDA ordinal of the memory that the transport sends; -1 for host memory.

    Raises
    ------
    InvalidProblemError
        The transport lacks a method, or its rank, world size or device is invalid.
    """

    cdef object transport
    cdef object error
    cdef bint stopped
    cdef Stream ring_stream

    def __cinit__(self, transport, device=-1):
        self.endpoint = <c_api.baracuda_ring_endpoint*>calloc(1, sizeof(self.endpoint[0]))
        if self.endpoint == NULL:
            raise MemoryError("ring endpoint")
        self.device = integer("device", device, -1, 2 ** 31)
        _require_protocol(transport)
        self.transport = transport
        self.rank = integer("transport.rank", transport.rank, -2 ** 31, 2 ** 31)
        self.world_size = integer("transport.world_size", transport.world_size, -2 ** 31, 2 ** 31)
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise InvalidProblemError(
                f"transport: got rank {self.rank} of {self.world_size}, must have "
                "0 <= rank < world_size")
        self.endpoint.struct_size = sizeof(self.endpoint[0])
        self.endpoint.device = device
        if device < 0:
            self.endpoint.ops = c_api.baracuda_host_stream_ops()
        else:
            self.endpoint.ops = c_api.baracuda_cuda_stream_ops()
            if self.endpoint.ops == NULL:
                raise InvalidProblemError(
                    f"device: got {device}, must be -1: this build has no CUDA")
        self.endpoint.transport.struct_size = sizeof(c_api.baracuda_transport)
        self.endpoint.transport.context = <void*>self
        self.endpoint.transport.rank = self.rank
        self.endpoint.transport.world_size = self.world_size
        self.endpoint.transport.group_start = _group_start
        self.endpoint.transport.send = _send
        self.endpoint.transport.recv = _recv
        self.endpoint.transport.group_end = _group_end
        self.endpoint.transport.abort = _abort
        check(c_api.baracuda_ring_endpoint_open(self.endpoint))
        if device >= 0:
            self.ring_stream = Stream(<uintptr_t>self.endpoint.ring_stream, device=device)

    @staticmethod
    def of(transport, device):
        """The communicator over ``transport``, made once for each transport and device.

        Parameters
        ----------
        transport : Transport
        device : int
            CUDA ordinal; -1 for host memory.

        Raises
        ------
        InvalidProblemError
            As the constructor; or the transport's rank or world size is not that of its first use.
        """
        device = integer("device", device, -1, 2 ** 31)
        key = id(transport)
        known, per_device = _members.get(key, (None, None))
        if known is None or known() is not transport:
            _require_protocol(transport)
            if known is not None:
                _members.pop(key, None)  # of a transport that is gone
            made = _weak(transport, partial(_forget, key=key)), {}
            _, per_device = _members.setdefault(key, made)  # another thread may have been faster
        cdef TransportCommunicator member = per_device.get(device)
        if member is None:
            # A weak proxy, since the member must not keep the transport alive.
            made = TransportCommunicator(weakref.proxy(transport), device)
            member = per_device.setdefault(device, made)
        if transport.rank != member.rank or transport.world_size != member.world_size:
            raise InvalidProblemError(
                f"transport: got rank {transport.rank} of {transport.world_size}, must stay rank "
                f"{member.rank} of {member.world_size}")
        return member

    cdef int leave(self, int32_t status) except -1:
        cause = None if status == c_api.BARACUDA_OK else last_exception(status)
        # For plan.validate. A run that ends early has called abandon() already, by _abort.
        if status in (c_api.BARACUDA_INTERRUPTED, c_api.BARACUDA_TRANSPORT_ERROR):
            self.abandon()
        error, self.error = self.error, None
        self.busy = False
        if status == c_api.BARACUDA_TRANSPORT_ERROR and error is not None:
            raise error
        if cause is not None:
            raise cause from error
        return 0

    cdef int abandon(self) except -1:
        # What the other ranks have sent must not be taken for messages of the next run.
        if self.stopped or self.world_size == 1:
            return 0
        self.stopped = True
        try:
            abort = getattr(self.transport, "abort", None)
            if abort is not None:
                abort()
        except BaseException as error:
            self.failed(error)
        return 0

    cdef int refuse_if_unusable(self) except -1:
        if self.stopped:
            raise CommunicatorError(
                f"communicator: rank {self.rank} of {self.world_size} ended a call early, after an "
                "error; make a new transport")
        return RingMember.refuse_if_unusable(self)

    cdef int32_t failed(self, object error) noexcept:
        if self.error is None:  # the first failure is the cause
            self.error = error
        return c_api.BARACUDA_TRANSPORT_ERROR

    def __dealloc__(self):
        if self.endpoint != NULL:
            c_api.baracuda_ring_endpoint_close(self.endpoint)
            free(self.endpoint)


cdef extern from *:
    """
    #include <pthread.h>
    #include <unistd.h>

    // A thread that is not the main one when Python ends is ended by Python (up to 3.13) wherever it
    // next wants the GIL: with the ring loop's frames on its stack, which cannot be unwound so. It
    // hangs instead, until the process is gone.
    static void baracuda_hang(void* unused) {
        (void)unused;
        for (;;) pause();
    }

    static int baracuda_call_python(int (*call)(void*), void* message) {
        int status;
        pthread_cleanup_push(baracuda_hang, NULL);
        status = call(message);
        pthread_cleanup_pop(0);
        return status;
    }
    """
    int baracuda_call_python(int (*call)(void*) noexcept nogil, void* message) nogil


cdef enum:
    _START, _SEND, _RECV, _END, _ABORT


cdef struct _Message:
    int what
    void* context
    void* data
    int64_t nbytes
    int32_t peer


cdef int _refuse_awaitable(str name, object result) except -1:
    """Nothing would wait for it, so it would transfer nothing."""
    if result is not None and hasattr(type(result), "__await__"):
        close = getattr(result, "close", None)
        if close is not None:
            close()  # or Python warns that it was never awaited
        raise InvalidProblemError(
            f"transport.{name}: got an awaitable ({type(result).__name__}), must be a method that "
            "does its work before it returns")
    return 0


cdef int _tell(void* given) noexcept with gil:
    cdef _Message* message = <_Message*>given
    cdef TransportCommunicator self = <TransportCommunicator>message.context
    try:
        if message.what == _START:
            _refuse_awaitable("group_start", self.transport.group_start())
        elif message.what == _END:
            _refuse_awaitable("group_end", self.transport.group_end())
        elif message.what == _ABORT:
            self.abandon()
        else:
            buffer = raw_slice(message.data, message.nbytes, self.device, message.what == _RECV)
            if message.what == _SEND:
                _refuse_awaitable(
                    "send", self.transport.send(buffer, message.peer, self.ring_stream))
            else:
                _refuse_awaitable(
                    "recv", self.transport.recv(buffer, message.peer, self.ring_stream))
    except BaseException as error:
        return self.failed(error)
    return c_api.BARACUDA_OK


cdef int32_t _call(int what, void* context, void* data, int64_t nbytes, int32_t peer) noexcept nogil:
    cdef _Message message
    message.what = what
    message.context = context
    message.data = data
    message.nbytes = nbytes
    message.peer = peer
    return baracuda_call_python(_tell, &message)


cdef int32_t _group_start(void* context) noexcept nogil:
    return _call(_START, context, NULL, 0, 0)


cdef int32_t _send(void* context, const void* data, int64_t nbytes, int32_t peer,
                   void* stream) noexcept nogil:
    return _call(_SEND, context, <void*>data, nbytes, peer)


cdef int32_t _recv(void* context, void* data, int64_t nbytes, int32_t peer,
                   void* stream) noexcept nogil:
    return _call(_RECV, context, data, nbytes, peer)


cdef int32_t _group_end(void* context) noexcept nogil:
    return _call(_END, context, NULL, 0, 0)


cdef void _abort(void* context) noexcept nogil:
    _call(_ABORT, context, NULL, 0, 0)
