# cython: language_level=3
"""P virtual ranks in one process, with the loop and the kernels of a real ring, and real copies."""

from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._member cimport RingBinding, RingMember
from baracuda_kernels._core._nccl_options cimport positive_seconds
from baracuda_kernels._core._operands cimport no_shared_outputs
from baracuda_kernels._core._ring_plan cimport RingPlan
from baracuda_kernels._core._status cimport check
from baracuda_kernels._core._stream cimport Stream, as_stream
from baracuda_kernels._core._timeline cimport RingTimeline, as_timeline
from baracuda_kernels._core._view cimport integer

from baracuda_kernels._core._errors import CommunicatorError, InvalidProblemError


cdef class _World:
    cdef c_api.baracuda_local_world* world

    def __cinit__(self, int world_size, double timeout):
        check(c_api.baracuda_local_world_create(world_size, timeout, &self.world))

    def __dealloc__(self):
        if self.world != NULL:
            c_api.baracuda_local_world_destroy(self.world)


cdef class LocalCommunicator(RingMember):
    """One virtual rank of a :class:`LocalRing`; made by :meth:`LocalCommunicator.ring`.

    Bytes are copied into the receiver's scratch, in the order of an NCCL ring. Each rank may be
    driven by its own thread (``plan.run``), or all ranks by one thread (:meth:`LocalRing.run_all`).
    """

    cdef _World world
    cdef bint aborted

    def __cinit__(self, world=None, int rank=0, int world_size=1, int device=-1):
        if not isinstance(world, _World):
            raise TypeError("LocalCommunicator: use LocalCommunicator.ring")
        self.world = world
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.endpoint = <c_api.baracuda_ring_endpoint*>calloc(1, sizeof(self.endpoint[0]))
        if self.endpoint == NULL:
            raise MemoryError("ring endpoint")
        self.endpoint.struct_size = sizeof(self.endpoint[0])
        self.endpoint.device = device
        self.endpoint.ops = (c_api.baracuda_host_stream_ops() if device < 0
                             else c_api.baracuda_cuda_stream_ops())
        if self.endpoint.ops == NULL:
            raise InvalidProblemError(
                f"device: got {device}, must be 'host': this build has no CUDA")
        check(c_api.baracuda_local_transport(self.world.world, rank, self.endpoint))
        check(c_api.baracuda_ring_endpoint_open(self.endpoint))

    @staticmethod
    def ring(world_size, *, device="host", timeout=60.0):
        """Make a ring of ``world_size`` virtual ranks.

        Parameters
        ----------
        world_size : int
            P >= 1.
        device : "host", int or sequence of int, default "host"
            The devices of the ranks: the host, one CUDA ordinal, or one ordinal for each rank.
        timeout : float, default 60
            Seconds that ranks driven by threads wait for each other before
            :class:`NcclTimeoutError`.

        Returns
        -------
        LocalRing

        Raises
        ------
        InvalidProblemError
            A number is out of its range, or the device is a GPU and the build has no CUDA.
        CudaError
            There is no such GPU.
        """
        return LocalRing(world_size, device, timeout)

    cdef int refuse_if_unusable(self) except -1:
        if self.aborted:
            raise CommunicatorError(f"communicator: rank {self.rank}'s local ring was aborted")
        return RingMember.refuse_if_unusable(self)

    def abort(self):
        """End the whole ring: waits and later calls of all ranks raise CommunicatorError."""
        self.aborted = True
        if self.world is None:
            return
        check(c_api.baracuda_local_world_abort(self.world.world))

    cdef int abandon(self) except -1:
        # In a ring of one rank no other rank waits, and no message is left for the next run.
        if self.world_size > 1:
            self.abort()
        return 0

    def __repr__(self):
        where = "host" if self.device < 0 else f"cuda:{self.device}"
        return f"LocalCommunicator(rank={self.rank}, world_size={self.world_size}, device={where})"

    def __dealloc__(self):
        if self.endpoint != NULL:
            c_api.baracuda_ring_endpoint_close(self.endpoint)
            free(self.endpoint)


cdef class LocalRing:
    """P virtual ranks in one process. Indexing gives a rank's :class:`LocalCommunicator`.

    Made by :meth:`LocalCommunicator.ring`, which documents the parameters and errors. By default
    `device` is "host" and `timeout` 60 seconds.

    Attributes
    ----------
    ranks : tuple of LocalCommunicator
    world_size : int
    """

    cdef readonly tuple ranks
    cdef readonly int world_size
    cdef c_api.baracuda_ring_call* calls

    def __cinit__(self, world_size, device="host", timeout=60.0):
        cdef _World world
        world_size = integer("world_size", world_size, 1, 65537)
        devices = _devices(device, world_size)
        world = _World(world_size, positive_seconds(timeout))
        self.world_size = world_size
        self.ranks = tuple([LocalCommunicator(world, rank, world_size, devices[rank])
                            for rank in range(world_size)])
        self.calls = <c_api.baracuda_ring_call*>calloc(world_size, sizeof(self.calls[0]))
        if self.calls == NULL:
            raise MemoryError("ring calls")

    def __len__(self):
        return self.world_size

    def __getitem__(self, rank):
        return self.ranks[rank]

    def __iter__(self):
        return iter(self.ranks)

    def abort(self):
        """End the ring: waits and later calls of all ranks raise CommunicatorError."""
        for rank in self.ranks:
            rank.abort()

    def run_all(self, stream, plans, args, *, timeline=None):
        """Run every rank from this thread: in each step all exchanges, then all kernels.

        Parameters
        ----------
        stream : Stream, or sequence of P
            One stream for all ranks, or one for each rank.
        plans : plan, or sequence of P
            One plan for all ranks, or one for each rank.
        args : sequence of P
            The arguments of each rank. What one rank writes, its scratch included, must not overlap
            any operand of another rank. All chunks that are sent must lie alike in memory.
        timeline : sequence of P RingTimeline, optional
            The timeline of each rank. Refused while a stream is captured.

        Raises
        ------
        InvalidProblemError, MisalignedOperandError, BufferTooSmallError, WorkspaceTooSmallError
            As ``plan.run`` for one of the ranks, memory that two ranks share, or chunks in different
            orders of dimensions. Nothing is launched for any rank.
        CommunicatorError, KeyboardInterrupt, CudaError
            As ``plan.run``.
        """
        cdef int r, entered = 0, count = self.world_size
        cdef int32_t status = c_api.BARACUDA_INVALID_ARGUMENT
        cdef RingBinding binding
        cdef RingMember member
        cdef Stream one
        cdef RingTimeline recorder
        cdef list bindings = [], recorders = []
        streams = [as_stream(given) for given in _per_rank("stream", stream, count)]
        plans = _per_rank("plans", plans, count)
        args = _per_rank("args", args, count)
        timelines = [None] * count if timeline is None else _per_rank("timeline", timeline, count)
        _refuse_mixture(plans, args)
        try:
            for r in range(count):
                (<RingMember>self.ranks[r]).enter()
                entered = r + 1
            # Until all ranks are entered, another run may read what is written below.
            for r in range(count):
                one = streams[r]
                binding = (<RingPlan>plans[r]).bind(one, <RingMember>self.ranks[r], args[r])
                binding.call.stream = one.handle
                binding.call.marks = NULL
                self.calls[r] = binding.call
                bindings.append(binding)  # kept alive: the arguments may be bound to another plan
            _refuse_company(bindings, plans, args)
            for r in range(count):
                recorder = as_timeline(timelines[r])
                if recorder is not None:
                    recorder.prepare(<RingMember>self.ranks[r], <Stream>streams[r],
                                     &self.calls[r])
                    recorders.append(recorder)
            with nogil:
                status = c_api.baracuda_ring_run(self.calls, count)
        finally:
            for recorder in recorders:
                recorder.finish(status)
            for r in range(entered):
                member = self.ranks[r]
                member.busy = False
        if status == c_api.BARACUDA_INTERRUPTED:
            (<RingMember>self.ranks[0]).abandon()
        check(status)

    def __repr__(self):
        return f"LocalRing({self.ranks!r})"

    def __dealloc__(self):
        free(self.calls)


cdef int _refuse_mixture(list plans, list args) except -1:
    """Refuse ranks whose plans differ or that share arguments: the result would be wrong."""
    first = plans[0]
    for r, plan in enumerate(plans):
        if not isinstance(plan, RingPlan):
            raise InvalidProblemError(
                f"plans: got {type(plan).__name__} for rank {r}, must be a ring plan")
        if plan is not first and (type(plan) is not type(first) or plan.family != first.family
                                  or plan.descriptor != first.descriptor):
            raise InvalidProblemError(
                f"plans: got {plan!r} for rank {r}, must mean the same as rank 0's, {first!r}")
    if len({id(given) for given in args}) != len(args):
        raise InvalidProblemError(
            "args: got the same arguments for two ranks, must be different ones")
    return 0


cdef int _refuse_company(list bindings, list plans, list args) except -1:
    """Refuse ranks of which one writes to another's memory or would misread another's chunk. The
    same bindings are compared once."""
    cdef RingBinding binding
    cdef object company = (<RingBinding>bindings[0]).company
    for binding in bindings:
        if company is None or binding.company is not company:
            break
    else:
        return 0
    no_shared_outputs([(<RingBinding>binding).operands for binding in bindings])
    orders = [(<RingPlan>plan).orders(given) for plan, given in zip(plans, args, strict=True)]
    for r, found in enumerate(orders):
        for name, order in found.items():
            if order != orders[0][name]:
                raise InvalidProblemError(
                    f"args: rank {r}: {name}: got {order}, must be {orders[0][name]} as on rank 0")
    company = object()
    for binding in bindings:
        binding.company = company
    return 0


cdef bint _is_ordinal(object device):
    return isinstance(device, int) and not isinstance(device, bool) and 0 <= device < 2 ** 31


cdef list _devices(object device, int world_size):
    if isinstance(device, str) and device == "host" or isinstance(device, int) and device == -1:
        return [-1] * world_size
    if _is_ordinal(device):
        return [device] * world_size
    if isinstance(device, (list, tuple)) and len(device) == world_size:
        if all([_is_ordinal(d) for d in device]):
            return list(device)
    raise InvalidProblemError(
        f"device: got {device!r}, must be 'host', a CUDA ordinal, or {world_size} ordinals")


cdef list _per_rank(str name, object value, int count):
    if isinstance(value, (list, tuple)):
        if len(value) != count:
            raise InvalidProblemError(
                f"{name}: got {len(value)}, must be one for each of {count} ranks")
        return list(value)
    if name in ("args", "timeline"):
        raise InvalidProblemError(
            f"{name}: got {type(value).__name__}, must be a sequence with one entry per rank "
            f"({count})")
    return [value] * count
