# cython: language_level=3
"""NCCL communicators: made here, or borrowed from whoever has one."""

import os
import time
from functools import partial
from typing import NamedTuple

from cpython.bytearray cimport PyByteArray_AsString
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport usleep

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._member cimport RingMember
from baracuda_kernels._core._status cimport check, last_exception, raise_later
from baracuda_kernels._core._stream cimport Stream, as_stream
from baracuda_kernels._core._tensor cimport TensorRef, as_tensor

from baracuda_kernels._core import _nccl_library
from baracuda_kernels._core._errors import (
    BaracudaError,
    CommunicatorError,
    InvalidProblemError,
    MisalignedOperandError,
    UnsupportedError,
)

DEFAULT_TIMEOUT = 300.0
# SMs that an exchange may take, and that kernels leave to it, where the caller does not say. Over
# NVLink an H100 moves about 34 GB/s each way with 4 of them, which is less than causal steps of
# 8192 rows want (33 MB in 0.85 ms, 8 key heads of 128), and 60 GB/s with 8.
DEFAULT_MAX_CTAS = 8
_MOST_CTAS = 64  # NCCL's channels
_STATES = ("healthy", "failed", "aborted")
# What `exchange` is where neither the caller nor BARACUDA_EXCHANGE says.
DEFAULT_EXCHANGE = "auto"
_WISHES = {"auto": c_api.BARACUDA_PEER_AUTO, "peer": c_api.BARACUDA_PEER_REQUIRED,
           "nccl": c_api.BARACUDA_PEER_NEVER}
_WAITS = {"event": c_api.BARACUDA_PEER_WAIT_EVENT, "value": c_api.BARACUDA_PEER_WAIT_VALUE,
          "gate": c_api.BARACUDA_PEER_WAIT_GATE}
_NOT_REGISTERED = "the receive buffers are not registered"
# Registered buffers, by communicator. Those that a neighbour may still write to stay for good.
_registered = {}


class HopExchange(NamedTuple):
    """How K and V get from one rank to the next.

    Attributes
    ----------
    sender, receiver : int
    kind : str
        "peer": the sender's copy engine writes into registered buffers, no SM takes part; what is
        not registered goes by NCCL. "nccl": NCCL's kernels.
    reason : str
        Why it is not "peer"; empty where it is.
    """

    sender: int
    receiver: int
    kind: str
    reason: str


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


def exchange_info():
    """Dict for ``info``: what `exchange` is by default here, and why no hop can be by peer, if so."""
    reason = ""
    if not c_api.baracuda_cuda_built():
        reason = "this build has no CUDA"
    elif c_api.baracuda_cuda_peer_ops() == NULL:
        reason = "the driver cannot let streams wait for words"
    return {"default": os.environ.get("BARACUDA_EXCHANGE") or DEFAULT_EXCHANGE,
            "no_peer_reason": reason}


def attempt(prepare):
    """What one rank tells the others before they do anything together: prepare()'s result, or the
    error that it raised."""
    try:
        return prepare()
    except BaracudaError as error:
        return error
    except Exception as error:
        return CommunicatorError(f"communicator: {type(error).__name__}: {error}")


def agreed(everyone, rank):
    """What all ranks told; an error among it is raised on every rank alike, by each its own."""
    failed = [r for r, said in enumerate(everyone) if isinstance(said, BaseException)]
    if rank in failed:
        raise everyone[rank]
    for other in failed:
        error = everyone[other]
        raise CommunicatorError(
            f"communicator: rank {other} of {len(everyone)} cannot join: "
            f"{type(error).__name__}: {error}") from error
    return everyone


def ready_to_join(rank, device, max_ctas, exchange, timeout):
    """Everything that can fail on one rank before the ring is made together: on rank 0 the new id's
    bytes."""
    cdef c_api.baracuda_cuda_device info
    cdef int32_t ordinal = _device(device)
    _max_ctas(max_ctas)
    _wish(exchange)
    _wait()
    _seconds(timeout)
    if ordinal >= 0:
        check(c_api.baracuda_cuda_device_info(ordinal, &info))
    _nccl_library.load()
    return UniqueId.new().bytes if rank == 0 else None


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
    cdef int32_t wish
    cdef object owner

    def __init__(self):
        raise TypeError(
            "Communicator: use new_single_gpu, init_all, init_rank, from_handle, from_torch or "
            "from_mpi")

    @staticmethod
    def new_single_gpu(device=0, *, exchange=None, timeout=DEFAULT_TIMEOUT):
        """A ring of one rank on a CUDA device.

        Parameters
        ----------
        device : int, default 0
            CUDA ordinal.
        exchange : optional
            As for :meth:`init_rank`; one rank has no hops.
        timeout : float, default 300
            Seconds until :class:`NcclTimeoutError`, for making the ring and for each run.

        Raises
        ------
        UnsupportedError, NcclError, NcclTimeoutError
            As :meth:`init_rank`.
        """
        return Communicator.init_rank(1, UniqueId.new(), 0, device=device, exchange=exchange,
                                      timeout=timeout)

    @staticmethod
    def init_all(devices, *, max_ctas=None, exchange=None, timeout=DEFAULT_TIMEOUT):
        """One communicator per device, all ranks of a ring in this process.

        Parameters
        ----------
        devices : sequence of int
            Distinct CUDA ordinals; rank r gets ``devices[r]``.
        max_ctas : int, optional
            SMs that an exchange may take (``max_ctas`` of NCCL's config), and that the kernels beside
            it leave free: 1 to 64, 8 by default. NCCL takes the next power of two.
        exchange : optional
            As for :meth:`init_rank`.
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
        cdef int32_t wish = _wish(exchange)
        cdef int32_t* ordinals
        cdef c_api.baracuda_nccl_comm** comms
        if count == 0 or len(set(devices)) != count:
            raise InvalidProblemError(f"devices: got {list(devices)}, must be distinct, one or more")
        began = time.monotonic()
        _nccl_library.load()
        ordinals = <int32_t*>calloc(count, sizeof(int32_t))
        comms = <c_api.baracuda_nccl_comm**>calloc(count, sizeof(comms[0]))
        try:
            for i in range(count):
                ordinals[i] = _device(devices[i])
            with nogil:
                status = c_api.baracuda_nccl_init_all(count, ordinals, ctas, seconds, comms)
            check(status)
            made = [_wrap(comms[i], seconds, None) for i in range(count)]
            _connect(made, wish, began)
            return made
        finally:
            free(ordinals)
            free(comms)

    @staticmethod
    def init_rank(world_size, unique_id, rank, *, device=None, max_ctas=None, exchange=None,
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
        exchange : "auto", "peer" or "nccl", optional
            How chunks move between ranks of one host; BARACUDA_EXCHANGE, else "auto", by default.
            "auto": by the copy engines where a trial shows that it works and the receive buffers
            are registered (:meth:`register`), else by NCCL; a hop needs both of its ranks to allow
            it. "peer": that, or an error.
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
            No NCCL, or one that is too old; or ``exchange="peer"`` where a hop cannot be.
        """
        cdef c_api.baracuda_nccl_comm* comm = NULL
        cdef bytes token
        cdef char* raw
        cdef int32_t status, size, place, ordinal, ctas = _max_ctas(max_ctas)
        cdef int32_t wish = _wish(exchange)
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
        began = time.monotonic()
        _nccl_library.load()
        with nogil:
            status = c_api.baracuda_nccl_init_rank(size, raw, place, ordinal, ctas, seconds, &comm)
        check(status)
        made = _wrap(comm, seconds, None)
        _connect([made], wish, began)
        return made

    @staticmethod
    def from_handle(handle, *, device=None, max_ctas=None, exchange=None,
                    timeout=DEFAULT_TIMEOUT, owner=None):
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
        exchange : optional
            As for :meth:`init_rank`; every rank must give it a communicator at the same time.
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
        cdef int32_t wish = _wish(exchange)
        cdef double seconds = _seconds(timeout)
        cdef void* raw
        if not _is_integer(handle, 1, 2 ** 64):
            raise InvalidProblemError(f"handle: got {handle!r}, must be a ncclComm_t as an int > 0")
        raw = <void*><uintptr_t>handle
        began = time.monotonic()
        _nccl_library.load()
        with nogil:
            status = c_api.baracuda_nccl_from_handle(raw, ordinal, seconds, &comm)
        check(status)
        c_api.baracuda_nccl_endpoint(comm).max_ctas = ctas
        made = _wrap(comm, seconds, owner)
        _connect([made], wish, began)
        return made

    @staticmethod
    def from_torch(group=None, borrow=False, *, device=None, max_ctas=None, exchange=None,
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
        device, max_ctas, exchange, timeout : optional
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
            handle, device = _torch_rendezvous.agreed_handle(
                group, device, max_ctas, exchange, timeout)
            return Communicator.from_handle(handle, device=device, max_ctas=max_ctas,
                                            exchange=exchange, timeout=timeout, owner=group)
        rank, world_size, token, device = _torch_rendezvous.rendezvous(
            group, device, max_ctas, exchange, timeout)
        return Communicator.init_rank(world_size, token, rank, device=device, max_ctas=max_ctas,
                                      exchange=exchange, timeout=timeout)

    @staticmethod
    def from_mpi(comm, *, device=None, max_ctas=None, exchange=None, timeout=DEFAULT_TIMEOUT):
        """A communicator with the ranks of an MPI communicator (collective).

        Parameters
        ----------
        comm : MPI.Comm
            Of MPI for Python, or anything with its ``Get_rank``, ``Get_size`` and ``bcast``.
        device, max_ctas, exchange, timeout : optional
            As for :meth:`init_rank`.

        Raises
        ------
        UnsupportedError, NcclError, NcclTimeoutError
            As :meth:`init_rank`; what rank 0 met when it made the id is raised on every rank.
        """
        rank, world_size = comm.Get_rank(), comm.Get_size()
        mine = attempt(partial(ready_to_join, rank, device, max_ctas, exchange, timeout))
        if hasattr(comm, "allgather"):
            everyone = comm.allgather(mine)
        else:
            everyone = [comm.bcast(mine, root=r) for r in range(world_size)]
        everyone = agreed(everyone, rank)
        return Communicator.init_rank(world_size, everyone[0], rank, device=device,
                                      max_ctas=max_ctas, exchange=exchange, timeout=timeout)

    def split(self, color, key=None, *, timeout=None):
        """Sub-ring of the ranks with the same ``color``, in the order of ``key`` (collective).

        The exchange is what this one asked for.

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
        began = time.monotonic()
        RingMember.enter(self)  # busy, but without a run's deadline: a split has its own
        try:
            with nogil:
                status = c_api.baracuda_nccl_split(self.comm, group, order, seconds, &child)
        finally:
            self.busy = False
        check(status)
        if child == NULL:
            return None
        made = _wrap(child, seconds, None)
        _connect([made], self.wish, began)
        return made

    def register(self, buffer):
        """Let runs receive into ``buffer`` by the copy engines of its neighbours (collective).

        Every rank gives the same buffers in the same order: those that it passes as
        ``kv_scratch_a`` and ``kv_scratch_b``, and for gradients as ``kv_gradient_scratch``, one by
        one or as one piece that they lie in, with the same places in it. The communicator keeps them
        alive. A run whose receive buffers are not registered goes by NCCL.

        Parameters
        ----------
        buffer : tensor
            Dense, on the communicator's device, in memory that other processes can open: of
            ``cudaMalloc``, as PyTorch's allocator makes it by default. Memory of a pool
            (``cudaMallocAsync``) and of the driver's virtual memory (PyTorch's expandable segments)
            is not.

        Raises
        ------
        UnsupportedError
            On every rank: a rank's memory cannot be opened by the rank before.
        InvalidProblemError
            Not dense, or not on this device.
        """
        cdef TensorRef view = as_tensor("buffer", buffer)
        cdef c_api.baracuda_peer* peer
        cdef int64_t nbytes
        cdef int32_t status
        self.refuse_if_unusable()
        if view.device != self.device:
            raise InvalidProblemError(
                f"buffer: got memory on device {view.device}, must be on {self.device}")
        if not view.is_dense_bytes():
            raise InvalidProblemError("buffer: got a view with gaps, must be dense")
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
        """How each hop of the ring goes, as a tuple of :class:`HopExchange`, in the order of the
        senders; empty at one rank.

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

    def refuse(self, error):
        """Refuse this rank's next run in its place, so that no other rank waits for it.

        Plans do it for what they refuse. It is for callers who find out by themselves that they
        cannot run what the other ranks are about to.

        The other ranks of this machine raise the error, with this rank's number, from the run that
        they would wait in: before anything is sent where they have not begun it, and then the ring
        goes on. Where one has, the ring fails on all of them within a tenth of a second. Ranks of
        other machines wait for their deadlines.

        Parameters
        ----------
        error : BaracudaError
            What the caller is going to raise.
        """
        if not isinstance(error, BaracudaError):
            raise InvalidProblemError(
                f"error: got {type(error).__name__}, must be a BaracudaError")
        self.refuse_if_unusable()
        self.pass_on(error, False)

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
        with it; :meth:`abort` ends those. It waits for the other ranks of the machine, and Ctrl-C
        ends the wait: the communicator is closed then, too.
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
        # From here on nobody comes in; whoever is inside never blocks, and is waited for.
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
            raise CommunicatorError("communicator: it is closed")
        return 0

    cdef int refuse_if_unusable(self) except -1:
        cdef int32_t state = 0
        self.refuse_if_closed()
        # A fault that another rank has met between two calls is told as itself, once.
        check(c_api.baracuda_nccl_poll(self.comm, &state))
        if state != 0:
            raise CommunicatorError(
                f"communicator: rank {self.rank} of {self.world_size} is {self.state} after an "
                "earlier error; make a new one")
        return 0

    cdef int accept(self, const c_api.baracuda_ring_call* call) except -1:
        if self.wish == c_api.BARACUDA_PEER_REQUIRED and self.receives_elsewhere(call):
            raise InvalidProblemError(
                f"kv_scratch_a, kv_scratch_b, kv_gradient_scratch: {_NOT_REGISTERED}; what the ring "
                "receives into must be given to comm.register() on every rank, as "
                "exchange=\"peer\" was asked for")
        return 0

    cdef tuple hops_of(self, const c_api.baracuda_ring_call* call):
        hops = self.exchange
        if self.receives_elsewhere(call):
            hops = tuple([HopExchange(hop.sender, hop.receiver, "nccl", hop.reason or _NOT_REGISTERED)
                          for hop in hops])
        return hops

    cdef bint receives_elsewhere(self, const c_api.baracuda_ring_call* call) except -1:
        """Whether a call receives into memory that is not registered."""
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
        RingMember.enter(self)
        cdef int32_t status = c_api.baracuda_nccl_arm(self.comm, self.timeout)
        if status != c_api.BARACUDA_OK:
            self.busy = False
            check(status)
        return 0

    cdef int pass_on(self, object error, bint begun) except -1:
        cdef bytes reason
        if self.comm != NULL and self.world_size > 1:
            reason = str(error).encode()
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
        RingMember.enter(self)  # busy, but without a run's deadline: this has its own
        with nogil:
            status = c_api.baracuda_nccl_all_gather(self.comm, source, size, target, seconds)
        self.leave(status)
        return [bytes(everyone[r * size:(r + 1) * size]) for r in range(self.world_size)]

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
        cdef int32_t status, stays
        if self.comm != NULL:
            with nogil:
                stays = c_api.baracuda_nccl_close_peers(self.comm)
                status = c_api.baracuda_nccl_destroy(self.comm)
            if not stays and _registered is not None:
                _registered.pop(<uintptr_t>self.comm, None)
            raise_later(status)


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


cdef int32_t _status_of(object error) noexcept:
    """What a rank that is told of an error raises it by."""
    if isinstance(error, UnsupportedError):
        return c_api.BARACUDA_UNSUPPORTED
    if isinstance(error, MisalignedOperandError):
        return c_api.BARACUDA_MISALIGNED
    if isinstance(error, CommunicatorError) or not isinstance(error, BaracudaError):
        return c_api.BARACUDA_ABORTED
    return c_api.BARACUDA_INVALID_ARGUMENT


# Finds out, with the other ranks, which hops go by peer: within what is left of the time since began.
cdef int _connect(list members, int32_t wish, double began) except -1:
    cdef int i, count = len(members)
    cdef int32_t status, wait = _wait()
    cdef double seconds = (<Communicator>members[0]).timeout
    cdef c_api.baracuda_nccl_comm** comms
    if seconds > 0:
        seconds = max(seconds - (time.monotonic() - began), 1e-3)
    comms = <c_api.baracuda_nccl_comm**>calloc(count, sizeof(comms[0]))
    if comms == NULL:
        raise MemoryError("communicators")
    for i in range(count):
        (<Communicator>members[i]).wish = wish
        comms[i] = (<Communicator>members[i]).comm
    with nogil:
        status = c_api.baracuda_nccl_connect_peers(comms, count, wish, wait, seconds)
    free(comms)
    error = None if status == c_api.BARACUDA_OK else last_exception(status)
    if error is not None:
        for i in range(count):
            (<Communicator>members[i]).close()
        raise error
    return 0


cdef int32_t _wish(object exchange) except -1:
    if exchange is None:
        exchange = os.environ.get("BARACUDA_EXCHANGE") or DEFAULT_EXCHANGE
    if exchange not in _WISHES:
        raise InvalidProblemError(
            f"exchange: got {exchange!r}, must be \"auto\", \"peer\" or \"nccl\"")
    return _WISHES[exchange]


cdef int32_t _wait() except -1:
    cdef object wait = os.environ.get("BARACUDA_PEER_WAIT") or "gate"
    if wait not in _WAITS:
        raise InvalidProblemError(
            f"BARACUDA_PEER_WAIT: got {wait!r}, must be \"event\", \"value\" or \"gate\"")
    return _WAITS[wait]


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
