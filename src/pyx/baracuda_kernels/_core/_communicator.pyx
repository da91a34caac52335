# cython: language_level=3
"""NCCL communicators: made here, or borrowed from their owner."""

import time
from functools import partial

from cpython.bytes cimport PyBytes_AsString
from libc.stdint cimport int32_t, uintptr_t
from libc.stdlib cimport calloc, free

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._member cimport RingMember
from baracuda_kernels._core._nccl_member cimport NcclMember
from baracuda_kernels._core._nccl_options cimport (
    ctas_of,
    device_ordinal,
    device_ordinals,
    is_integer,
    peer_wait,
    seconds_of,
    wish_of,
)
from baracuda_kernels._core._status cimport check, last_exception

from baracuda_kernels._core import _nccl_library
from baracuda_kernels._core._errors import InvalidProblemError
from baracuda_kernels._core._nccl_options import DEFAULT_TIMEOUT
from baracuda_kernels._core._rendezvous import agreed, attempt, ready_to_join
from baracuda_kernels._core._unique_id import UniqueId


cdef class Communicator(NcclMember):
    """A rank of a NCCL ring, with its own ring stream and events.

    Made by the static methods below. One ``run`` at a time. Different communicators are
    independent, but NCCL requires that every rank issues the operations of several communicators
    in the same order. If a deadline passes, an owned communicator is aborted; a borrowed one never
    is. After a failure the communicator refuses further use with a :class:`CommunicatorError`.

    As a context manager it closes itself at the end.

    Attributes
    ----------
    rank, world_size : int
        This rank, and the number of ranks.
    device : int
        CUDA ordinal; -1 for a library that moves host memory.
    timeout : float
        Seconds that a run may take until :class:`NcclTimeoutError`; 0 for no limit.
    """

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
        timeout : float or None, default 300
            Seconds until :class:`NcclTimeoutError`, for making the ring and for each run; None for
            no limit.

        Raises
        ------
        UnsupportedError, NcclError, NcclTimeoutError
            As :meth:`init_rank`.
        """
        return Communicator.init_rank(1, UniqueId.new(), 0, device=device, exchange=exchange,
                                      timeout=timeout)

    @staticmethod
    def init_all(devices, *, max_ctas=None, exchange=None, timeout=DEFAULT_TIMEOUT):
        """One communicator per device: all ranks of a ring in this process.

        Parameters
        ----------
        devices : sequence of int
            Distinct CUDA ordinals; rank r gets ``devices[r]``.
        max_ctas : int, optional
            SMs that an exchange may take (``max_ctas`` of NCCL's config) and that concurrent
            kernels leave free: 1 to 64, 8 by default, rounded up to a power of two.
        exchange : optional
            As for :meth:`init_rank`.
        timeout : float or None, default 300
            Seconds until :class:`NcclTimeoutError`, for making the ring and for each run; None for
            no limit.

        Returns
        -------
        list of Communicator

        Raises
        ------
        InvalidProblemError
            No device, a value that is not an ordinal, or a device given twice.
        UnsupportedError, NcclError, NcclTimeoutError
            As :meth:`init_rank`.
        """
        cdef list places = device_ordinals(devices)
        cdef int i, count = len(places)
        cdef int32_t status, ctas = ctas_of(max_ctas)
        cdef double seconds = seconds_of(timeout)
        cdef int32_t wish = wish_of(exchange), wait = peer_wait()
        cdef int32_t* ordinals
        cdef c_api.baracuda_nccl_comm** comms
        began = time.monotonic()
        _nccl_library.load()
        ordinals = <int32_t*>calloc(count, sizeof(int32_t))
        comms = <c_api.baracuda_nccl_comm**>calloc(count, sizeof(comms[0]))
        try:
            for i in range(count):
                ordinals[i] = places[i]
            with nogil:
                status = c_api.baracuda_nccl_init_all(count, ordinals, ctas, seconds, comms)
            check(status)
            made = [_wrap(comms[i], seconds, None) for i in range(count)]
            _connect(made, wish, wait, began)
            return made
        finally:
            free(ordinals)
            free(comms)

    @staticmethod
    def init_rank(world_size, unique_id, rank, *, device=None, max_ctas=None, exchange=None,
                  timeout=DEFAULT_TIMEOUT):
        """Join a ring (collective over all ranks).

        Parameters
        ----------
        world_size : int
            Ranks of the ring, 1 or more.
        unique_id : UniqueId or bytes
            The same on every rank.
        rank : int
            This rank, 0 to ``world_size - 1``.
        device : int or "host", optional
            CUDA ordinal; the current device by default. "host" is for NCCL-compatible libraries
            that move host memory.
        max_ctas : int, optional
            SMs that an exchange may take (``max_ctas`` of NCCL's config) and that concurrent
            kernels leave free: 1 to 64, 8 by default, rounded up to a power of two.
        exchange : "auto", "peer" or "nccl", optional
            How chunks move between ranks of one host. The default is the environment's
            ``BARACUDA_EXCHANGE``, else "auto". "nccl": by NCCL. "auto": by the copy engines if a
            trial works, neither rank of the hop asked for "nccl", and the receive buffers are
            registered (:meth:`register`); else by NCCL. "peer": by the copy engines, or an error.
        timeout : float or None, default 300
            Seconds until :class:`NcclTimeoutError`, for joining and for each run; None for no
            limit.

        Raises
        ------
        InvalidProblemError
            A rank, world size, id, device, ``max_ctas``, exchange or timeout out of its range.
        NcclTimeoutError
            A rank did not come in time.
        NcclError
            A NCCL call failed.
        UnsupportedError
            NCCL is missing or too old, or ``exchange="peer"`` and a hop cannot be by peer.
        """
        cdef c_api.baracuda_nccl_comm* comm = NULL
        cdef bytes token
        cdef char* raw
        cdef int32_t status, size, place, ordinal, ctas = ctas_of(max_ctas)
        cdef int32_t wish = wish_of(exchange), wait = peer_wait()
        cdef double seconds = seconds_of(timeout)
        if not is_integer(world_size, 1, 2 ** 31):
            raise InvalidProblemError(f"world_size: got {world_size!r}, must be an integer >= 1")
        if not is_integer(rank, 0, world_size):
            raise InvalidProblemError(
                f"rank: got {rank!r}, must be an integer in [0, {world_size})")
        if not isinstance(unique_id, UniqueId):
            unique_id = UniqueId.from_bytes(unique_id)
        token = unique_id.bytes
        raw = PyBytes_AsString(token)
        size, place, ordinal = world_size, rank, device_ordinal(device)
        began = time.monotonic()
        _nccl_library.load()
        with nogil:
            status = c_api.baracuda_nccl_init_rank(size, raw, place, ordinal, ctas, seconds, &comm)
        check(status)
        made = _wrap(comm, seconds, None)
        _connect([made], wish, wait, began)
        return made

    @staticmethod
    def from_handle(handle, *, device=None, max_ctas=None, exchange=None,
                    timeout=DEFAULT_TIMEOUT, owner=None):
        """Borrow a ready ``ncclComm_t``. It is never aborted or destroyed here.

        Parameters
        ----------
        handle : int
            The ``ncclComm_t``, made by the libnccl that this library loads.
        device : int, optional
            Its CUDA ordinal; the current device by default.
        max_ctas : int, optional
            SMs that kernels leave free for an exchange: 1 to 64, 8 by default, rounded up to a
            power of two. The handle's owner has chosen how many the exchange takes.
        exchange : optional
            As for :meth:`init_rank`; every rank must call this method at the same time.
        timeout : float or None, default 300
            Seconds that a run may take until :class:`NcclTimeoutError`; None for no limit. The
            handle stays as it is; only this object counts as failed.
        owner : object, optional
            An object that is kept alive as long as the communicator.

        Raises
        ------
        InvalidProblemError
            An argument out of its range.
        UnsupportedError, NcclError
            NCCL is missing, or does not know the handle.
        """
        cdef c_api.baracuda_nccl_comm* comm = NULL
        cdef int32_t status, ordinal = device_ordinal(device), ctas = ctas_of(max_ctas)
        cdef int32_t wish = wish_of(exchange), wait = peer_wait()
        cdef double seconds = seconds_of(timeout)
        cdef void* raw
        if not is_integer(handle, 1, 2 ** 64):
            raise InvalidProblemError(f"handle: got {handle!r}, must be a ncclComm_t as an int > 0")
        raw = <void*><uintptr_t>handle
        began = time.monotonic()
        _nccl_library.load()
        with nogil:
            status = c_api.baracuda_nccl_from_handle(raw, ordinal, seconds, &comm)
        check(status)
        c_api.baracuda_nccl_endpoint(comm).max_ctas = ctas
        made = _wrap(comm, seconds, owner)
        _connect([made], wish, wait, began)
        return made

    @staticmethod
    def from_torch(group=None, borrow=False, *, device=None, max_ctas=None, exchange=None,
                   timeout=DEFAULT_TIMEOUT):
        """A communicator with the ranks of a torch process group.

        Parameters
        ----------
        group : torch.distributed.ProcessGroup, optional
            torch's default group by default.
        borrow : bool, default False
            False: make a new communicator, with the id sent through the group (collective).
            True: use the group's ready NCCL handle, in the libnccl that torch uses. It is never
            aborted or destroyed here.
        device, max_ctas, exchange, timeout : optional
            As for :meth:`init_rank`, or with ``borrow`` for :meth:`from_handle`.

        Raises
        ------
        InvalidProblemError
            The group does not exist, or this process is not one of its ranks.
        UnsupportedError
            ``borrow``, and torch does not give the group's handle.
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
            Of MPI for Python, or any object with its ``Get_rank``, ``Get_size`` and ``bcast``.
        device, max_ctas, exchange, timeout : optional
            As for :meth:`init_rank`.

        Raises
        ------
        UnsupportedError, NcclError, NcclTimeoutError
            As :meth:`init_rank`. A rank that cannot join raises its own error, and every other
            rank a :class:`CommunicatorError` that names it.
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
        """The sub-ring of the ranks with the same ``color``, in the order of ``key`` (collective).

        Its ``exchange`` is the one that this communicator was made with.

        Parameters
        ----------
        color : int or None
            0 or more. A rank with None joins no sub-ring and gets None.
        key : int, optional
            Any 32-bit integer; the rank by default.
        timeout : float, optional
            Seconds for splitting and for each run of the sub-ring; the communicator's own by
            default.

        Returns
        -------
        Communicator or None

        Raises
        ------
        InvalidProblemError
            A color, key or timeout out of its range, here or on another rank of this machine. On a
            rank that had begun the call, the ring has failed. A call that had begun on a borrowed
            communicator ends only at its deadline.
        CommunicatorError, NcclError, NcclTimeoutError
            The communicator is in use or has failed, or a rank did not come.
        """
        cdef c_api.baracuda_nccl_comm* child = NULL
        cdef int32_t status, group, order
        cdef double seconds
        try:
            seconds = self.timeout if timeout is None else seconds_of(timeout)
            if color is not None and not is_integer(color, 0, 2 ** 31):
                raise InvalidProblemError(
                    f"color: got {color!r}, must be None or an integer in [0, 2**31)")
            if key is not None and not is_integer(key, -2 ** 31, 2 ** 31):
                raise InvalidProblemError(f"key: got {key!r}, must be None or a 32-bit integer")
        except Exception as error:
            self.pass_on(error, False)
            raise
        group = -1 if color is None else color
        order = self.rank if key is None else key
        began = time.monotonic()
        self.begin(0)  # without a run's deadline: the split has its own
        try:
            with nogil:
                status = c_api.baracuda_nccl_split(self.comm, group, order, seconds, &child)
        finally:
            self.busy = False
        check(status)
        if child == NULL:
            return None
        made = _wrap(child, seconds, None)
        _connect([made], self.wish, self.wait, began)
        return made

    def __repr__(self):
        return (f"Communicator(rank={self.rank}, world_size={self.world_size}, "
                f"device={self.device}, state={self.state!r})")


cdef Communicator _wrap(c_api.baracuda_nccl_comm* comm, double timeout, object owner):
    cdef Communicator self = Communicator.__new__(Communicator)
    self.take(comm, timeout, owner)
    return self


# Agrees with the other ranks on which hops are by peer. `began` is the time at which the members'
# timeout started. After a failure the members are closed.
cdef int _connect(list members, int32_t wish, int32_t wait, double began) except -1:
    cdef int i, count = len(members)
    cdef int32_t status
    cdef double seconds = (<Communicator>members[0]).timeout
    cdef c_api.baracuda_nccl_comm** comms
    if seconds > 0:
        seconds = max(seconds - (time.monotonic() - began), 1e-3)
    comms = <c_api.baracuda_nccl_comm**>calloc(count, sizeof(comms[0]))
    if comms == NULL:
        raise MemoryError("communicators")
    for i in range(count):
        (<Communicator>members[i]).wish = wish
        (<Communicator>members[i]).wait = wait
        comms[i] = (<Communicator>members[i]).comm
    with nogil:
        status = c_api.baracuda_nccl_connect_peers(comms, count, wish, wait, seconds)
    free(comms)
    if status != c_api.BARACUDA_OK:
        _close_all(members, last_exception(status))
    return 0


# Closes all members after an error, then raises the error. Errors of close() become notes of it. If
# close() is ended by a signal such as Ctrl-C, the signal's exception is raised in place of the
# error.
cdef int _close_all(list members, object error) except -1:
    signalled = None
    for member in members:
        try:
            member.close()
        except Exception as late:
            error.add_note(f"rank {member.rank} could not be closed: {late}")
        except BaseException as late:  # such as Ctrl-C
            signalled = late
    if signalled is not None:
        raise signalled from error
    raise error
