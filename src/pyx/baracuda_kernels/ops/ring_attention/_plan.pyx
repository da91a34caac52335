# cython: language_level=3
"""The Ring Attention plan: choose once, run many times."""

from functools import partial

from libc.stdint cimport int32_t, int64_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels._core._device cimport enter_device, leave_device
from baracuda_kernels._core._member cimport RingBinding, RingMember, RingPlan, as_member
from baracuda_kernels._core._operands cimport SCRATCH_ALIGNMENT
from baracuda_kernels._core._plan cimport MADE_BY_SELECT
from baracuda_kernels._core._stream cimport Stream, as_stream
from baracuda_kernels._core._tensor cimport TensorRef, as_tensor
from baracuda_kernels._core._timeline cimport RingTimeline, as_timeline
from baracuda_kernels.ops.attention._kernel cimport AttentionKernel, load_kernel
from baracuda_kernels.ops.attention._operands cimport AttentionOperands
from baracuda_kernels.ops.ring_attention._args cimport RingAttentionArgs
from baracuda_kernels.ops.ring_attention._descriptor cimport RingAttentionDescriptor

from baracuda_kernels._core._enums import Direction
from baracuda_kernels._core._errors import BaracudaError, InvalidProblemError
from baracuda_kernels._core._selection import OpSpec
from baracuda_kernels.ops.attention import _families, _options
from baracuda_kernels.ops.attention._kind import AttentionKind
from baracuda_kernels.ops.ring_attention import _agreement


_MAX_POSITION = 2 ** 62
_MAX_RANKS = 2 ** 31 - 1


cdef class _Binding(RingBinding):
    """K and V travel beside the steps, as one payload of two pieces."""

    cdef attention_api.baracuda_attention_ring_problem problem

    def __cinit__(self):
        self.problem.struct_size = sizeof(self.problem)
        self.call.program = attention_api.baracuda_attention_ring_program()
        self.call.problem = &self.problem
        self.call.payload_count = 1
        self.payloads[0].timing = c_api.BARACUDA_RING_BESIDE
        self.payloads[0].pieces = 2


cdef class RingAttentionPlan(RingPlan):
    """Exact attention over a sequence that is sharded across a ring. Made by :meth:`select`.

    Every rank makes the same plan. ``run`` rotates K and V around the ring while it computes, and
    keeps an unnormalised float32 state across the steps, so the answer does not get worse as the
    ring grows. It allocates nothing and never waits for the GPU.

    Attributes
    ----------
    descriptor : RingAttentionDescriptor
    accumulator_scratch_bytes : int
        Bytes of the accumulator: B * H * Q * (D + 2) * 4 (8 for F64 operands), with Q rounded up
        to the kernel's tile where the kernel keeps its state in tiles.
    """

    cdef readonly int64_t accumulator_scratch_bytes
    cdef AttentionKernel kernel

    @staticmethod
    def select(descriptor, stream, preference=None):
        """Choose a kernel for a problem, load it, and return the plan.

        Parameters
        ----------
        descriptor : RingAttentionDescriptor
            The problem: shapes of one rank, element type, mask and layout.
        stream : Stream or what :class:`Stream` takes
            Tells the device: ``Stream.host()`` for the CPU, or a CUDA stream. An earlier version
            took the stream first; that order still works.
        preference : PlanPreference, optional
            What the kernel must guarantee, such as a precision; by default nothing.

        Returns
        -------
        RingAttentionPlan
            Without scratch: allocate as much as its attributes say, and ``run`` it.

        Raises
        ------
        InvalidProblemError
            The descriptor's numbers make no problem: negative extents, a scale that is not
            finite, heads that do not divide.
        UnsupportedError
            No kernel fits; the message has every kernel's reason.
        """
        cdef RingAttentionPlan self = RingAttentionPlan.__new__(RingAttentionPlan, MADE_BY_SELECT)
        cdef attention_api.baracuda_attention_step_params step
        cdef RingAttentionDescriptor problem
        if isinstance(stream, RingAttentionDescriptor) or isinstance(descriptor, Stream):
            descriptor, stream = stream, descriptor
        family = self.choose(SPEC, as_stream(stream), descriptor, preference, Direction.FORWARD)
        problem = descriptor
        self.kernel = load_kernel(family, problem, self.device)
        problem.fill(&step)
        self.accumulator_scratch_bytes = attention_api.baracuda_attention_state_bytes(
            self.kernel.number, &step)
        return self

    @property
    def kv_scratch_elements(self):
        """Elements of each K/V scratch buffer, 2 * B * Hkv * K * D."""
        return 2 * _kv_elements(self.descriptor)

    @property
    def scratch_alignment(self):
        """Bytes that the scratch buffers' addresses must be a multiple of."""
        return SCRATCH_ALIGNMENT

    def can_implement(self, RingAttentionArgs args not None, world_size=None, *, comm=None):
        """Raise what ``run`` would raise for these arguments; return None if it would run.

        Parameters
        ----------
        args : RingAttentionArgs
        world_size : int, optional
            Ranks of the ring. Without it the staged contract is checked: both scratch buffers and the accumulator.
        comm : Communicator, LocalCommunicator, or an object with the Transport protocol, optional
            Instead of `world_size`, what ``run`` would be given: its device counts then, and, where it
            was made with ``exchange="peer"``, whether the buffers to receive into are registered.

        Raises
        ------
        InvalidProblemError, MisalignedOperandError, BufferTooSmallError, WorkspaceTooSmallError
            As :meth:`run`.
        CommunicatorError
            The communicator failed, or is closed.
        """
        if comm is not None:
            if world_size is not None:
                raise InvalidProblemError("world_size, comm: got both, must be one of them")
            self.bind_anew(as_member(comm, self.kernel.device), args)
            return
        if world_size is not None and (not isinstance(world_size, int) or world_size < 1):
            raise InvalidProblemError(f"world_size: got {world_size!r}, must be an integer >= 1")
        self.check(args, 3 if world_size is None else world_size, _Binding())

    def validate(self, comm, RingAttentionArgs args=None):
        """Check once, before the first run, that every rank means the same call (collective).

        Compares the library version, every field of the descriptor, the schedule and, with
        ``args``, whether K and V are staged or in place and their dimension orders. Ranks that
        differ there would wait for each other's messages or read them wrongly.

        Parameters
        ----------
        comm : Communicator, LocalCommunicator, or an object with the Transport protocol
        args : RingAttentionArgs, optional
            What the run will be given.

        Raises
        ------
        InvalidProblemError
            On every rank alike: which rank differs from rank 0, in which field, and how.
        CommunicatorError, NcclError, NcclTimeoutError
            The ring failed, or a rank did not come.
        """
        cdef RingMember member = as_member(comm, self.kernel.device)
        try:
            if member.device != self.kernel.device:
                raise InvalidProblemError(
                    f"comm: is on device {member.device}, the plan was selected for "
                    f"{self.kernel.device}")
            if args is not None:
                self.check(args, member.world_size, _Binding())
            message = _agreement.encode(self.descriptor, args)
        except BaracudaError as error:
            member.pass_on(error, False)
            raise
        _agreement.require(member.world_size, member.all_gather(message))

    def run(self, stream, comm, RingAttentionArgs args not None, *, timeline=None):
        """Attend to the whole ring; every rank calls it.

        Parameters
        ----------
        stream : Stream or what :class:`Stream` takes
            The caller's: inputs are read, and y and lse written, in its order.
        comm : Communicator, LocalCommunicator, or an object with the Transport protocol
        args : RingAttentionArgs
        timeline : RingTimeline, optional
            Gets when each step computed and exchanged. Refused while ``stream`` is captured.

        Raises
        ------
        InvalidProblemError, MisalignedOperandError, BufferTooSmallError, WorkspaceTooSmallError
            An operand is wrong, here or on another rank of an NCCL ring on this machine; nothing was
            launched or sent. A rank that has begun already finds its ring failed.
        CommunicatorError
            The communicator is busy in another run, failed or closed.
        KeyboardInterrupt
            Ctrl-C while the host computed, or waited for another rank. What y, lse and the scratch
            hold is undefined then, and the ring is aborted (one of several ranks).
        NcclError, NcclTimeoutError, CudaError
            The ring or the GPU failed.
        """
        cdef RingMember member = as_member(comm, self.kernel.device)
        cdef Stream one
        cdef RingBinding binding
        cdef RingTimeline recorder
        cdef int32_t status, previous
        try:
            one = as_stream(stream)
            binding = self.bind(one, member, args)
            recorder = as_timeline(timeline)
        except BaracudaError as error:
            member.pass_on(error, False)
            raise
        # Until the communicator is ours another run may be reading what is written below.
        member.enter()
        binding.call.stream = one.handle
        binding.call.marks = NULL
        try:
            previous = enter_device(self.kernel.device)
            if recorder is not None:
                try:
                    recorder.prepare(member, one, &binding.call)
                except BaseException:
                    leave_device(previous)
                    raise
        except BaseException as error:
            member.pass_on(error, True)
            member.leave(c_api.BARACUDA_OK)
            raise
        with nogil:
            status = c_api.baracuda_ring_run(&binding.call, 1)
        if recorder is not None:
            recorder.finish(status)
        try:
            leave_device(previous)
        finally:
            member.leave(status)

    def step(self, stream, *, q, k, v, y=None, lse=None, accumulator_scratch=None, rank=0,
             origin=0, world_size=1, first=True, last=True, follows=False):
        """One step, for callers who rotate K and V themselves.

        Folds the chunk that ``origin`` started with into the state of ``rank``'s rows.

        Parameters
        ----------
        stream : Stream or what :class:`Stream` takes
        q : [B, H, Q, D]
            As in :class:`RingAttentionArgs`.
        k, v : [B, Hkv, K, D]
            Any strides with a contiguous last dimension.
        y : [B, H, Q, D], optional
            Written by the last step, which needs it.
        lse : [B, H, Q], optional
            Written by the last step.
        accumulator_scratch : plan.accumulator_scratch_bytes bytes, optional
            The state, which every step needs that is not first and last at once.
        rank : int, default 0
            Whose queries these are; with `origin` and `world_size` it gives the positions.
        origin : int, default 0
            Whose keys these are.
        world_size : int, default 1
            Ranks of the ring.
        first : bool, default True
            There is no state yet.
        last : bool, default True
            Normalise and write y and lse; the state is not stored.
        follows : bool, default False
            A promise that what was enqueued last on ``stream`` is a step of this plan, and that q,
            k and v were complete before that one began. The two then run side by side until the
            state is wanted. Without it, or where the kernel cannot, a step waits for the end of
            what is before it.

        Raises
        ------
        InvalidProblemError, MisalignedOperandError, WorkspaceTooSmallError
            An argument is wrong or missing; nothing was launched.
        CudaError
            The launch failed.
        """
        cdef Stream one = as_stream(stream)
        cdef attention_api.baracuda_attention_step_params step
        cdef RingAttentionDescriptor d = self.descriptor
        cdef AttentionOperands checks = self.kernel.checks()
        cdef TensorRef view
        self.refuse_stream(one)
        if not isinstance(world_size, int) or world_size < 1:
            raise InvalidProblemError(f"world_size: got {world_size!r}, must be an integer >= 1")
        if world_size * max(d.query_len, d.key_len, 1) > _MAX_POSITION or world_size > _MAX_RANKS:
            raise InvalidProblemError(
                f"world_size: got {world_size}, must keep all positions below 2**62 and be below "
                "2**31")
        for name, value in (("rank", rank), ("origin", origin)):
            if not isinstance(value, int) or not 0 <= value < world_size:
                raise InvalidProblemError(
                    f"{name}: got {value!r}, must be an integer in [0, {world_size})")
        d.fill(&step)
        checks.bind_query(d, as_tensor("q", q), &step)
        checks.bind_keys(d, as_tensor("k", k), as_tensor("v", v), &step)
        if last:
            step.flags |= attention_api.BARACUDA_STEP_LAST
            checks.bind_outputs(d, as_tensor("y", y), as_tensor("lse", lse), &step)
        if first:
            step.flags |= attention_api.BARACUDA_STEP_FIRST
        elif follows:
            step.flags |= attention_api.BARACUDA_STEP_FOLLOWS
        if not (first and last):
            view = checks.workspace("accumulator_scratch",
                                    as_tensor("accumulator_scratch", accumulator_scratch),
                                    self.accumulator_scratch_bytes)
            step.state = view.data
        checks.no_overlaps()
        step.q_map = attention_api.baracuda_layout_map(d.c_layout, rank, world_size, d.query_len)
        step.k_map = attention_api.baracuda_layout_map(d.c_layout, origin, world_size, d.key_len)
        self.kernel.step(&step, one)

    cdef RingBinding bind(self, Stream stream, RingMember member, object args):
        cdef RingBinding binding
        cdef RingAttentionArgs given
        if not isinstance(args, RingAttentionArgs):
            raise InvalidProblemError(
                f"args: got {type(args).__name__}, must be RingAttentionArgs")
        given = args
        self.refuse_stream(stream)
        binding = given.binding
        if binding is not None and binding.plan is self and binding.member is member:
            return binding
        binding = self.bind_anew(member, given)
        given.binding = binding
        return binding

    cdef RingBinding bind_anew(self, RingMember member, RingAttentionArgs args):
        cdef _Binding checked
        member.refuse_if_unusable()
        if member.device != self.kernel.device:
            raise InvalidProblemError(
                f"comm: is on device {member.device}, the plan was selected for {self.kernel.device}")
        checked = _Binding()
        self.check(args, member.world_size, checked)
        checked.connect(self, member)
        return checked

    cdef int check(self, RingAttentionArgs args, int64_t world_size, _Binding binding) except -1:
        """Checks every operand and fills the call; its schedule and endpoint are not its."""
        cdef RingAttentionDescriptor d = self.descriptor
        cdef AttentionOperands checks = self.kernel.checks()
        cdef c_api.baracuda_ring_payload* kv = &binding.payloads[0]
        cdef attention_api.baracuda_attention_step_params* step = &binding.problem.step
        cdef int64_t nbytes = _kv_elements(d) * d.itemsize
        cdef TensorRef view, scratch_a = None, scratch_b = None
        cdef bint in_place = args.k is not None
        binding.problem.kernel = self.kernel.number
        binding.problem.layout = d.c_layout
        d.fill(step)
        checks.bind_query(d, args.q, step)
        checks.bind_outputs(d, args.y, args.lse, step)
        if (args.k is None) != (args.v is None):
            raise InvalidProblemError("k, v: got only one of them, must be given together")
        if in_place:
            checks.bind_keys(d, args.k, args.v, step)
            if world_size > 1:
                _require_dense("k", args.k, step.k_strides, d)
                _require_dense("v", args.v, step.v_strides, d)
        if not in_place or world_size > 1:
            scratch_a = checks.scratch("kv_scratch_a", args.kv_scratch_a, 2 * _kv_elements(d))
        if world_size > (2 if in_place else 1):
            scratch_b = checks.scratch("kv_scratch_b", args.kv_scratch_b, 2 * _kv_elements(d))
        if in_place:
            kv.buffers[1] = NULL if scratch_a is None else scratch_a.data
            kv.buffers[0] = NULL if scratch_b is None else scratch_b.data
        else:
            step.k = scratch_a.data
            step.v = <char*>scratch_a.data + nbytes
            step.k_strides.seq = step.v_strides.seq = d.head_dim
            step.k_strides.head = step.v_strides.head = d.key_len * d.head_dim
            step.k_strides.batch = step.v_strides.batch = \
                d.num_kv_heads * d.key_len * d.head_dim
            kv.buffers[0] = scratch_a.data
            kv.buffers[1] = NULL if scratch_b is None else scratch_b.data
        kv.piece_bytes[0] = kv.piece_bytes[1] = nbytes
        kv.own[0] = <void*>step.k
        kv.own[1] = <void*>step.v
        if world_size > 1:
            view = checks.workspace("accumulator_scratch", args.accumulator_scratch,
                                    self.accumulator_scratch_bytes)
            step.state = view.data
        checks.no_overlaps()
        return 0


cdef int64_t _kv_elements(RingAttentionDescriptor d) noexcept:
    return d.batch_size * d.num_kv_heads * d.key_len * d.head_dim


cdef int _require_dense(str name, TensorRef view, attention_api.baracuda_strides strides,
                        RingAttentionDescriptor d) except -1:
    """One message per tensor goes around, so its elements must be one dense run of memory."""
    cdef int64_t expected = 1
    shape = (d.batch_size, d.num_kv_heads, d.key_len, d.head_dim)
    steps = (strides.batch, strides.head, strides.seq, 1)
    if 0 in shape:
        return 0
    for i in sorted([i for i in range(4) if shape[i] > 1], key=lambda i: steps[i]):
        if steps[i] != expected:
            raise InvalidProblemError(
                f"{name}: got strides {view.strides} for shape {view.shape}, must be dense (in any "
                "dimension order) to be sent in place; copy it, or stage it in kv_scratch_a")
        expected *= shape[i]
    return 0


SPEC = OpSpec(
    "ring_attention",
    RingAttentionDescriptor,
    {Direction.FORWARD: RingAttentionPlan},
    partial(_families.skus, AttentionKind.RING_ATTENTION),
    partial(_families.candidates, AttentionKind.RING_ATTENTION, workspace=True),
    options=(*_options.OPTIONS, _options.LAYOUT),
    describe=partial(_options.describe, RingAttentionDescriptor),
)
