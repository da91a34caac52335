# cython: language_level=3
"""NCCL communicators: made here, or borrowed from whoever has one."""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uintptr_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport usleep

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._member cimport RingMember
from baracuda_kernels._core._status cimport check, last_exception
from baracuda_kernels._core._stream cimport Stream, as_stream

from baracuda_kernels._core import _nccl_library
from baracuda_kernels._core._errors import BaracudaError, CommunicatorError, InvalidProblemError

DEFAULT_TIMEOUT = 300.0
# SMs that an exchange may take, and that kernels leave to it, where the caller does not say. Over
# NVLink an H100 moves about 34 GB/s each way with 4 of them, which is less than causal steps of
# 8192 rows want (33 MB in 0.85 ms, 8 key heads of 128), and 60 GB/s with 8.
DEFAULT_MAX_CTAS = 8
_MOST_CTAS = 64  # NCCL's channels
_STATES = ("healthy", "failed", "aborted")


cdef class UniqueId:
    """UniqueId(data)

    NCCL's rendezvous token: made on one rank, given to all. Hashable, picklable.

    Parameters
    ----------
    data : bytes
        128 of them.

    Attributes
    ----------
    bytes : bytes
        What to send to the other ranks.

    Raises
    ------
    InvalidProblemError
        Not 128 bytes.
    """

    cdef readonly bytes bytes

    def __cinit__(self, bytes data):
        if len(data) != c_api.BARACUDA_NCCL_UNIQUE_ID_BYTES:
            raise InvalidProblemError(
                f"unique_id: got {len(data)} bytes, must be "
                f"{c_api.BARACUDA_NCCL_UNIQUE_ID_BYTES}")
        self.bytes = data

    @staticmethod
    def new():
        """A fresh id (``ncclGetUniqueId``); needs NCCL, not a GPU.

        Raises
        ------
        UnsupportedError
            No NCCL was found.
        NcclError
            NCCL made none.
        """
        cdef char buffer[128]
        _nccl_library.load()
        check(c_api.baracuda_nccl_unique_id(buffer))
        return UniqueId(PyBytes_FromStringAndSize(buffer, c_api.BARACUDA_NCCL_UNIQUE_ID_BYTES))

    @staticmethod
    def from_bytes(data):
        """The id that ``data`` (128 bytes) holds; else an :class:`InvalidProblemError`."""
        return UniqueId(bytes(data))

    def __eq__(self, other):
        return isinstance(other, UniqueId) and self.bytes == (<UniqueId>other).bytes

    def __hash__(self):
        return hash(self.bytes)

    def __reduce__(self):
        return UniqueId, (self.bytes,)

    def __repr__(self):
        return f"UniqueId({self.bytes[:16].hex()}...)"


def id_to_send():
    """Rank 0's side of a rendezvous: a new id's bytes, or the error that the others wait for."""
    try:
        return UniqueId.new().bytes
    except BaracudaError as error:
        return error
    except Exception as error:
        return CommunicatorError(f"unique_id: {type(error).__name__}: {error}")


def received_id(sent, rank):
    """The id that rank 0 sent; its error, if that is what came, is raised on every rank."""
    if not isinstance(sent, BaseException):
        return UniqueId.from_bytes(sent)
    if rank == 0:
        raise sent
    raise CommunicatorError(f"rank 0 made no unique id: {type(sent).__name__}: {sent}") from sent


cdef class Communicator(RingMember):
    """A rank of a NCCL ring, with its own ring stream and events.

    Made by the static methods below. One ``run`` at a time; different communicators are
    independent, but NCCL itself needs every rank to issue operations on several communicators in
    the same order. An owned communicator is aborted when a deadline passes; a borrowed one never
    is. After a failure it refuses further use with a :class:`CommunicatorError`.

    Usable as a context manager, which closes it.

    Attributes
    ----------
    rank, world_size : int
        Which member of the ring this is, and of how many.
    device : int
        CUDA ordinal; -1 for a library that moves host memory.
    timeout : float
        Seconds that a run may take until :class:`NcclTimeoutError`.
    """

    cdef c_api.baracuda_nccl_comm* comm
    cdef int users    # calls without the GIL that the communicator must outlive and that end soon
    cdef int waiting  # and those that may wait long
    cdef readonly double timeout
    cdef object owner

    def __init__(self):
        raise TypeError(
            "Communicator: use new_single_gpu, init_all, init_rank, from_handle, from_torch or "
            "from_mpi")

    @staticmethod
    def new_single_gpu(device=0, *, timeout=DEFAULT_TIMEOUT):
        """A ring of one rank on a CUDA device.

        Parameters
        ----------
        device : int, default 0
            CUDA ordinal.
        timeout : float, default 300
            Seconds until :class:`NcclTimeoutError`, for making the ring and for each run.

        Raises
        ------
        UnsupportedError, NcclError, NcclTimeoutError
            As :meth:`init_rank`.
        """
        return Communicator.init_rank(1, UniqueId.new(), 0, device=device, timeout=timeout)

    @staticmethod
    def init_all(devices, *, max_ctas=None, timeout=DEFAULT_TIMEOUT):
        """One communicator per device, all ranks of a ring in this process.

        Parameters
        ----------
        devices : sequence of int
            Distinct CUDA ordinals; rank r gets ``devices[r]``.
        max_ctas : int, optional
            SMs that an exchange may take (``max_ctas`` of NCCL's config), and that the kernels beside
            it leave free: 1 to 64, 8 by default. NCCL takes the next power of two.
        timeout : float, default 300
            Seconds until :class:`NcclTimeoutError`, for making the ring and for each run.

        Returns
        -------
        list of Communicator

        Raises
        ------
        InvalidProblemError
            No device, one that is no ordinal, or one twice.
        UnsupportedError, NcclError, NcclTimeoutError
            As :meth:`init_rank`.
        """
        cdef int i, count = len(devices)
        cdef int32_t status, ctas = _max_ctas(max_ctas)
        cdef double seconds = _seconds(timeout)
        cdef int32_t* ordinals
        cdef c_api.baracuda_nccl_comm** comms
        if count == 0 or len(set(devices)) != count:
            raise InvalidProblemError(f"devices: got {list(devices)}, must be distinct, one or more")
        _nccl_library.load()
        ordinals = <int32_t*>calloc(count, sizeof(int32_t))
        comms = <c_api.baracuda_nccl_comm**>calloc(count, sizeof(comms[0]))
        try:
            for i in range(count):
                ordinals[i] = _device(devices[i])
            with nogil:
                status = c_api.baracuda_nccl_init_all(count, ordinals, ctas, seconds, comms)
            check(status)
            return [_wrap(comms[i], seconds, None) for i in range(count)]
        finally:
            free(ordinals)
            free(comms)

    @staticmethod
    def init_rank(world_size, unique_id, rank, *, device=None, max_ctas=None,
                  timeout=DEFAULT_TIMEOUT):
        """Join a ring: collective over all ranks.

        Parameters
        ----------
        world_size : int
        unique_id : UniqueId or bytes
            The same on every rank.
        rank : int
        device : int or "host", optional
            CUDA ordinal, the current device by default. "host" is for NCCL-compatible libraries
            that move host memory.
        max_ctas : int, optional
            SMs that an exchange may take (``max_ctas`` of NCCL's config), and that the kernels beside
            it leave free: 1 to 64, 8 by default. NCCL takes the next power of two.
        timeout : float, default 300
            Seconds until :class:`NcclTimeoutError`, for joining and for each run.

        Raises
        ------
        InvalidProblemError
            A rank, world size, id, device, ``max_ctas`` or timeout out of its range.
        NcclTimeoutError
            A rank did not come in time.
        NcclError
            A NCCL call failed.
        UnsupportedError
            No NCCL, or one that is too old.
        """
        cdef c_api.baracuda_nccl_comm* comm = NULL
        cdef bytes token
        cdef char* raw
        cdef int32_t status, size, place, ordinal, ctas = _max_ctas(max_ctas)
        cdef double seconds = _seconds(timeout)
        if not _is_integer(world_size, 1, 2 ** 31):
            raise InvalidProblemError(f"world_size: got {world_size!r}, must be an integer >= 1")
        if not _is_integer(rank, 0, world_size):
            raise InvalidProblemError(
                f"rank: got {rank!r}, must be an integer in [0, {world_size})")
        if not isinstance(unique_id, UniqueId):
            unique_id = UniqueId.from_bytes(unique_id)
        token = unique_id.bytes
        raw = PyBytes_AsString(token)
        size, place, ordinal = world_size, rank, _device(device)
        _nccl_library.load()
        with nogil:
            status = c_api.baracuda_nccl_init_rank(size, raw, place, ordinal, ctas, seconds, &comm)
        check(status)
        return _wrap(comm, seconds, None)

    @staticmethod
    def from_handle(handle, *, device=None, max_ctas=None, timeout=DEFAULT_TIMEOUT, owner=None):
        """Borrow a ready ``ncclComm_t``: never aborted, never destroyed here.

        Parameters
        ----------
        handle : int
            The ``ncclComm_t``, made by the same libnccl that this library loads.
        device : int, optional
            Its CUDA ordinal, the current device by default.
        max_ctas : int, optional
            SMs that the kernels leave free for an exchange: 1 to 64, 8 by default, and the next power
            of two. How many it takes is its owner's choice.
        timeout : float, default 300
            Seconds that a run may take until :class:`NcclTimeoutError`; the communicator then only
            counts as failed here.
        owner : object, optional
            Kept alive as long as the communicator.

        Raises
        ------
        InvalidProblemError
            No handle, or another argument out of its range.
        UnsupportedError, NcclError
            No NCCL, or it does not know the handle.
        """
        cdef c_api.baracuda_nccl_comm* comm = NULL
        cdef int32_t status, ordinal = _device(device), ctas = _max_ctas(max_ctas)
        cdef double seconds = _seconds(timeout)
        cdef void* raw
        if not _is_integer(handle, 1, 2 ** 64):
            raise InvalidProblemError(f"handle: got {handle!r}, must be a ncclComm_t as an int > 0")
        raw = <void*><uintptr_t>handle
        _nccl_library.load()
        with nogil:
            status = c_api.baracuda_nccl_from_handle(raw, ordinal, seconds, &comm)
        check(status)
        c_api.baracuda_nccl_endpoint(comm).max_ctas = ctas
        return _wrap(comm, seconds, owner)

    @staticmethod
    def from_torch(group=None, borrow=False, *, device=None, max_ctas=None,
                   timeout=DEFAULT_TIMEOUT):
        """A communicator with the ranks of a torch process group.

        Parameters
        ----------
        group : torch.distributed.ProcessGroup, optional
            The default group by default.
        borrow : bool, default False
            False makes an own communicator, with the id sent through the group (collective).
            True uses the group's ready NCCL handle, in the libnccl that torch uses; refused where
            torch does not offer it. It is never aborted or destroyed here.
        device, max_ctas, timeout : optional
            As for :meth:`init_rank`, or with ``borrow`` for :meth:`from_handle`.

        Raises
        ------
        InvalidProblemError
            There is no such group, or this process is none of its ranks.
        UnsupportedError
            ``borrow`` of a group that does not lend its handle.
        NcclError, NcclTimeoutError
            As :meth:`init_rank`.
        """
        from baracuda_kernels.interop import _torch_rendezvous

        if borrow:
            handle, device = _torch_rendezvous.handle(group, device)
            return Communicator.from_handle(handle, device=device, max_ctas=max_ctas,
                                            timeout=timeout, owner=group)
        rank, world_size, token, device = _torch_rendezvous.rendezvous(group, device)
        return Communicator.init_rank(world_size, token, rank, device=device, max_ctas=max_ctas,
                                      timeout=timeout)

    @staticmethod
    def from_mpi(comm, *, device=None, max_ctas=None, timeout=DEFAULT_TIMEOUT):
        """A communicator with the ranks of an MPI communicator (collective).

        Parameters
        ----------
        comm : MPI.Comm
            Of MPI for Python, or anything with its ``Get_rank``, ``Get_size`` and ``bcast``.
        device, max_ctas, timeout : optional
            As for :meth:`init_rank`.

        Raises
        ------
        UnsupportedError, NcclError, NcclTimeoutError
            As :meth:`init_rank`; what rank 0 met when it made the id is raised on every rank.
        """
        rank, world_size = comm.Get_rank(), comm.Get_size()
        token = received_id(comm.bcast(id_to_send() if rank == 0 else None, root=0), rank)
        return Communicator.init_rank(world_size, token, rank, device=device, max_ctas=max_ctas,
                                      timeout=timeout)

    def split(self, color, key=None, *, timeout=None):
        """Sub-ring of the ranks with the same ``color``, in the order of ``key`` (collective).

        Parameters
        ----------
        color : int or None
            0 or more; None takes no part and returns None.
        key : int, optional
            The rank by default.
        timeout : float, optional
            Seconds, the communicator's own by default: for splitting, and for runs of the sub-ring.

        Raises
        ------
        InvalidProblemError
            A color, key or timeout out of its range.
        CommunicatorError, NcclError, NcclTimeoutError
            The communicator is in use or failed, or a rank did not come.
        """
        cdef c_api.baracuda_nccl_comm* child = NULL
        cdef int32_t status, group, order
        cdef double seconds = self.timeout if timeout is None else _seconds(timeout)
        if color is not None and not _is_integer(color, 0, 2 ** 31):
            raise InvalidProblemError(
                f"color: got {color!r}, must be None or an integer in [0, 2**31)")
        if key is not None and not _is_integer(key, -2 ** 31, 2 ** 31):
            raise InvalidProblemError(f"key: got {key!r}, must be None or a 32-bit integer")
        group = -1 if color is None else color
        order = self.rank if key is None else key
        RingMember.enter(self)  # busy, but without a run's deadline: a split has its own
        try:
            with nogil:
                status = c_api.baracuda_nccl_split(self.comm, group, order, seconds, &child)
        finally:
            self.busy = False
        check(status)
        return None if child == NULL else _wrap(child, seconds, None)

    @property
    def handle(self):
        """The ``ncclComm_t`` as an int."""
        self.refuse_if_unusable()
        return <uintptr_t>c_api.baracuda_nccl_handle(self.comm)

    @property
    def owned(self):
        """Whether the NCCL communicator is ours to abort and destroy."""
        self.refuse_if_closed()
        return bool(c_api.baracuda_nccl_is_owned(self.comm))

    @property
    def state(self):
        """"healthy", "failed", "aborted" or "closed"."""
        if self.comm == NULL:
            return "closed"
        return _STATES[c_api.baracuda_nccl_state(self.comm)]

    def async_error(self):
        """The error NCCL met in the background, as an exception object; None if there is none."""
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
        """Abort an owned communicator, from any thread; a borrowed one is only marked failed."""
        cdef c_api.baracuda_nccl_comm* comm
        cdef int32_t status
        self.refuse_if_closed()
        comm = self.comm
        self.users += 1
        with nogil:
            status = c_api.baracuda_nccl_abort(comm)
        self.users -= 1
        check(status)

    def synchronize(self, stream, timeout=None):
        """Wait until ``stream`` is done, watching the ring.

        Parameters
        ----------
        stream : Stream or what :class:`Stream` takes
        timeout : float, optional
            Seconds, the communicator's own by default.

        Raises
        ------
        NcclTimeoutError
            Not done in time.
        NcclError
            NCCL met an error in the background. In both cases an owned communicator is aborted.
        """
        cdef Stream one = as_stream(stream)
        cdef c_api.baracuda_nccl_comm* comm
        cdef int32_t status
        cdef double seconds = self.timeout if timeout is None else _seconds(timeout)
        self.refuse_if_unusable()
        comm = self.comm
        self.waiting += 1
        with nogil:
            status = c_api.baracuda_nccl_synchronize(comm, one.handle, seconds)
        self.waiting -= 1
        check(status)

    def close(self):
        """End the communicator. Idempotent; a failed one is aborted, a borrowed one left alone.

        Refused with a :class:`CommunicatorError` while another thread runs, splits or synchronizes
        with it; :meth:`abort` ends those.
        """
        cdef c_api.baracuda_nccl_comm* comm = self.comm
        cdef int32_t status
        if comm == NULL:
            return
        if self.busy:
            raise CommunicatorError("communicator: close() while a run is in flight; abort() it")
        if self.waiting:
            raise CommunicatorError(
                "communicator: close() while another thread waits in synchronize(); abort() it")
        # From here on nobody comes in; whoever is inside never blocks, and is waited for.
        self.comm = NULL
        self.endpoint = NULL
        while self.users:
            with nogil:
                usleep(50)
        with nogil:
            status = c_api.baracuda_nccl_destroy(comm)
        check(status)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    cdef int refuse_if_closed(self) except -1:
        if self.comm == NULL:
            raise CommunicatorError("communicator: it is closed")
        return 0

    cdef int refuse_if_unusable(self) except -1:
        self.refuse_if_closed()
        if c_api.baracuda_nccl_state(self.comm) != 0:
            raise CommunicatorError(
                f"communicator: rank {self.rank} of {self.world_size} is {self.state} after an "
                "earlier error; make a new one")
        return 0

    cdef int enter(self) except -1:
        RingMember.enter(self)
        cdef int32_t status = c_api.baracuda_nccl_arm(self.comm, self.timeout)
        if status != c_api.BARACUDA_OK:
            self.busy = False
            check(status)
        return 0

    cdef int leave(self, int32_t status) except -1:
        # The first failure is the cause, so it is read before the watchdog is asked.
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

    def __repr__(self):
        return (f"Communicator(rank={self.rank}, world_size={self.world_size}, "
                f"device={self.device}, state={self.state!r})")

    def __dealloc__(self):
        if self.comm != NULL:
            with nogil:
                c_api.baracuda_nccl_destroy(self.comm)


cdef Communicator _wrap(c_api.baracuda_nccl_comm* comm, double timeout, object owner):
    cdef Communicator self = Communicator.__new__(Communicator)
    self.comm = comm
    self.endpoint = c_api.baracuda_nccl_endpoint(comm)
    self.rank = c_api.baracuda_nccl_rank(comm)
    self.world_size = c_api.baracuda_nccl_world_size(comm)
    self.device = self.endpoint.device
    self.timeout = timeout
    self.owner = owner
    return self


cdef bint _is_integer(object value, object low, object end):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < end


cdef int32_t _device(object device) except? -2:
    cdef int32_t current = 0
    if device is None:
        check(c_api.baracuda_cuda_current_device(&current))
        return current
    if device == "host":
        return -1
    if _is_integer(device, 0, 2 ** 31):
        return device
    raise InvalidProblemError(f"device: got {device!r}, must be a CUDA ordinal >= 0")


cdef int32_t _max_ctas(object max_ctas) except? -2:
    if max_ctas is None:
        return DEFAULT_MAX_CTAS
    if _is_integer(max_ctas, 1, _MOST_CTAS + 1):
        return 1 << (max_ctas - 1).bit_length()
    raise InvalidProblemError(
        f"max_ctas: got {max_ctas!r}, must be None or an integer from 1 to {_MOST_CTAS}")


cdef double _seconds(object timeout) except? -2:
    if timeout is None:
        return 0.0
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout > 0:
        return timeout
    raise InvalidProblemError(f"timeout: got {timeout!r}, must be None or > 0 seconds")
