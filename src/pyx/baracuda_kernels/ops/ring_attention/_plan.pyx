# cython: language_level=3
"""The Ring Attention plan: choose a kernel once, run it many times."""

from functools import partial

from libc.stdint cimport int64_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels._core._member cimport RingBinding
from baracuda_kernels._core._plan cimport MADE_BY_SELECT
from baracuda_kernels._core._stream cimport Stream, as_stream
from baracuda_kernels._core._tensor cimport TensorRef, as_tensor
from baracuda_kernels._core._view cimport flag
from baracuda_kernels.ops.attention._kernel cimport load_kernel
from baracuda_kernels.ops.attention._operands cimport AttentionOperands
from baracuda_kernels.ops.ring_attention._args cimport RingAttentionArgs
from baracuda_kernels.ops.ring_attention._base cimport RingAttentionBase, kv_elements
from baracuda_kernels.ops.ring_attention._descriptor cimport RingAttentionDescriptor

from baracuda_kernels._core._enums import Direction
from baracuda_kernels._core._errors import InvalidProblemError
from baracuda_kernels._core._selection import OpSpec
from baracuda_kernels.ops.attention import _families, _options
from baracuda_kernels.ops.attention._kind import AttentionKind
from baracuda_kernels.ops.ring_attention._backward import RingAttentionBackwardPlan


cdef class _Binding(RingBinding):
    """One payload of two pieces: K and V travel BESIDE the steps."""

    cdef attention_api.baracuda_attention_ring_problem problem

    def __cinit__(self):
        self.problem.struct_size = sizeof(self.problem)
        self.call.program = attention_api.baracuda_attention_ring_program()
        self.call.problem = &self.problem
        self.call.payload_count = 1
        self.payloads[0].timing = c_api.BARACUDA_RING_BESIDE
        self.payloads[0].pieces = 2


cdef class RingAttentionPlan(RingAttentionBase):
    """Exact attention over a sequence that is sharded across a ring. Made by :meth:`select`.

    Every rank makes the same plan. ``run`` rotates K and V around the ring while it computes, and
    keeps an unnormalised state across the steps, in float32 (float64 for F64 operands), so the
    answer does not get worse as the ring grows. A run allocates nothing and never waits for the
    GPU.

    Attributes
    ----------
    descriptor : RingAttentionDescriptor
    accumulator_scratch_bytes : int
        Bytes of the state: B * H * Q * (D + 2) * 4 (8 for F64 operands). A kernel that keeps its
        state in tiles rounds Q up to whole tiles.
    """

    cdef readonly int64_t accumulator_scratch_bytes

    @staticmethod
    def select(descriptor, stream, preference=None):
        """Choose a kernel for a problem, load it, and return the plan.

        Parameters
        ----------
        descriptor : RingAttentionDescriptor
            The problem: shapes of one rank, element type, mask and layout.
        stream : Stream or what :class:`Stream` takes
            Gives the device: ``Stream.host()`` for the CPU, or a CUDA stream. An earlier version
            took the stream first; that order still works.
        preference : PlanPreference, optional
            Conditions for the kernel, such as a precision; by default none.

        Returns
        -------
        RingAttentionPlan
            It owns no memory: allocate scratch of the sizes that its attributes give, and call
            ``run``.

        Raises
        ------
        InvalidProblemError
            The descriptor is invalid: a negative extent, a scale that is not finite, or a number of
            heads that is not a multiple of the K/V heads.
        UnsupportedError
            No kernel fits; the message gives each kernel's reason.
        """
        cdef RingAttentionPlan self = RingAttentionPlan.__new__(RingAttentionPlan, MADE_BY_SELECT)
        cdef attention_api.baracuda_attention_step_params step
        cdef RingAttentionDescriptor problem
        family = self.choose(SPEC, descriptor, stream, preference, Direction.FORWARD)
        problem = self.descriptor
        self.kernel = load_kernel(family, problem, self.device)
        problem.fill(&step)
        self.accumulator_scratch_bytes = attention_api.baracuda_attention_state_bytes(
            self.kernel.number, &step)
        return self

    def step(self, stream, *, q, k, v, y=None, lse=None, accumulator_scratch=None, rank=0,
             origin=0, world_size=1, first=True, last=True, follows=False):
        """One step, for callers who send K and V themselves.

        Adds the chunk that ``origin`` started with to the state of ``rank``'s rows.

        Parameters
        ----------
        stream : Stream or a source that :class:`Stream` takes
        q : [B, H, Q, D]
            As in :class:`RingAttentionArgs`.
        k, v : [B, Hkv, K, D]
            Any strides with a contiguous last dimension.
        y : [B, H, Q, D], optional
            Written by the last step, which needs it.
        lse : [B, H, Q], optional
            Written by the last step.
        accumulator_scratch : plan.accumulator_scratch_bytes bytes, optional
            The state. A step needs it unless it is both first and last.
        rank : int, default 0
            The rank whose queries these are. The positions follow from `rank`, `origin` and
            `world_size`.
        origin : int, default 0
            The rank whose keys these are.
        world_size : int, default 1
            Number of ranks.
        first : bool, default True
            There is no state to read yet.
        last : bool, default True
            Normalise, and write y and lse. The state is not stored.
        follows : bool, default False
            A promise: the work enqueued last on ``stream`` is a step of this plan, and q, k and v
            were complete before that step began. This step may then start while that one still
            runs, and waits for it only before it reads the state. Without the promise, or if the
            kernel cannot overlap, this step waits for all earlier work on the stream.

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
        d.fill(&step)
        self.place(rank, origin, world_size, &step)
        checks.bind_query(d, as_tensor("q", q), &step)
        checks.bind_keys(d, as_tensor("k", k), as_tensor("v", v), &step)
        if flag("last", last):
            step.flags |= attention_api.BARACUDA_STEP_LAST
            checks.bind_outputs(d, as_tensor("y", y), as_tensor("lse", lse), &step)
        if flag("first", first):
            step.flags |= attention_api.BARACUDA_STEP_FIRST
        if flag("follows", follows) and not first:
            step.flags |= attention_api.BARACUDA_STEP_FOLLOWS
        if not (first and last):
            view = checks.workspace("accumulator_scratch",
                                    as_tensor("accumulator_scratch", accumulator_scratch),
                                    self.accumulator_scratch_bytes)
            step.state = view.data
        checks.no_overlaps()
        self.kernel.step(&step, one)

    cdef RingBinding check(self, object given, int64_t world_size):
        cdef RingAttentionDescriptor d = self.descriptor
        cdef AttentionOperands checks = self.kernel.checks()
        cdef _Binding binding = _Binding()
        cdef attention_api.baracuda_attention_step_params* step = &binding.problem.step
        cdef RingAttentionArgs args
        cdef TensorRef view
        if not isinstance(given, RingAttentionArgs):
            raise InvalidProblemError(
                f"args: got {type(given).__name__}, must be RingAttentionArgs")
        args = given
        binding.problem.kernel = self.kernel.number
        binding.problem.layout = d.c_layout
        d.fill(step)
        checks.bind_query(d, args.q, step)
        checks.bind_outputs(d, args.y, args.lse, step)
        if (args.k is None) != (args.v is None):
            raise InvalidProblemError("k, v: got only one of them, must be given together")
        if args.k is not None:
            self.bind_chunks(checks, args.k, args.v, args.kv_scratch_a, args.kv_scratch_b,
                             world_size, True, step, &binding.payloads[0])
        else:
            self.bind_staged(checks, args, world_size, step, &binding.payloads[0])
        if world_size > 1:
            view = checks.workspace("accumulator_scratch", args.accumulator_scratch,
                                    self.accumulator_scratch_bytes)
            step.state = view.data
        checks.no_overlaps()
        binding.operands = checks
        return binding

    cdef int bind_staged(self, AttentionOperands checks, RingAttentionArgs args, int64_t world_size,
                         attention_api.baracuda_attention_step_params* step,
                         c_api.baracuda_ring_payload* kv) except -1:
        cdef RingAttentionDescriptor d = self.descriptor
        cdef int64_t nbytes = kv_elements(d) * d.itemsize
        cdef TensorRef view = checks.scratch("kv_scratch_a", args.kv_scratch_a, 2 * kv_elements(d))
        step.k = view.data
        step.v = <char*>view.data + nbytes
        step.k_strides.seq = step.v_strides.seq = d.head_dim
        step.k_strides.head = step.v_strides.head = d.key_len * d.head_dim
        step.k_strides.batch = step.v_strides.batch = d.num_kv_heads * d.key_len * d.head_dim
        kv.buffers[0] = view.data
        kv.buffers[1] = NULL
        if world_size > 1:
            view = checks.scratch("kv_scratch_b", args.kv_scratch_b, 2 * kv_elements(d))
            kv.buffers[1] = view.data
        kv.piece_bytes[0] = kv.piece_bytes[1] = nbytes
        kv.own[0] = <void*>step.k
        kv.own[1] = <void*>step.v
        return 0


SPEC = OpSpec(
    "ring_attention",
    RingAttentionDescriptor,
    {Direction.FORWARD: RingAttentionPlan, Direction.BACKWARD: RingAttentionBackwardPlan},
    partial(_families.skus, AttentionKind.RING_ATTENTION, tuple(Direction)),
    partial(_families.candidates, AttentionKind.RING_ATTENTION, several_steps=True),
    options=(*_options.OPTIONS, _options.LAYOUT),
    describe=partial(_options.describe, RingAttentionDescriptor),
)
