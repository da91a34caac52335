# cython: language_level=3
"""The backward of Ring Attention: choose a kernel once, run it many times."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from baracuda_kernels._core cimport c_api
from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels._core._member cimport RingBinding
from baracuda_kernels._core._operands cimport SCRATCH_ALIGNMENT
from baracuda_kernels._core._plan cimport MADE_BY_SELECT
from baracuda_kernels._core._ring_plan cimport RingArgs
from baracuda_kernels._core._stream cimport Stream, as_stream
from baracuda_kernels._core._tensor cimport TensorRef, as_tensor
from baracuda_kernels._core._view cimport flag
from baracuda_kernels.ops.attention._kernel cimport load_backward_kernel
from baracuda_kernels.ops.attention._operands cimport AttentionOperands
from baracuda_kernels.ops.ring_attention._base cimport RingAttentionBase, kv_elements, \
    require_dense
from baracuda_kernels.ops.ring_attention._descriptor cimport RingAttentionDescriptor

from baracuda_kernels._core._enums import Direction
from baracuda_kernels._core._errors import InvalidProblemError
from baracuda_kernels.ops.attention import _families
from baracuda_kernels.ops.attention._descriptor import accumulator_of


cdef enum:
    # Chunks of the gradients' scratch: this rank's own share, and the payload's three buffers.
    _CHUNKS = 4


cdef class RingAttentionBackwardArgs(RingArgs):
    """RingAttentionBackwardArgs(*, q, k, v, y, dy, lse, dq, dk, dv, scratch=None, \
kv_scratch_a=None, kv_scratch_b=None, kv_gradient_scratch=None, dlse=None)

    Views of one rank's operands and scratch, checked once and used for any number of runs.

    q, y and dy may have any strides with a contiguous last dimension; dy may be expanded, for
    example. dq, dk and dv may have such strides too, if their elements do not overlap.

    Parameters
    ----------
    q : [B, H, Q, D]
    k, v : [B, Hkv, K, D]
        This rank's chunk, which is read and sent from your memory. With more than one
        rank, k and v must each be dense, in any order of dimensions, but in the same order on every
        rank.
    y : [B, H, Q, D]
        The forward's output.
    dy : [B, H, Q, D]
        The gradient of y.
    lse : [B, H, Q], float32 (float64 for F64 operands), any strides
        The forward's lse, in the accumulator's type.
    dq : [B, H, Q, D], written
    dk, dv : [B, Hkv, K, D], written
        The gradients of this rank's chunk, summed over the rows of all ranks. Both have the
        operands' type, or both the accumulator's.
    scratch : contiguous, plan.scratch_bytes bytes, optional
        May be None if that is 0.
    kv_scratch_a, kv_scratch_b : contiguous, plan.kv_scratch_elements elements, optional
        The two receive buffers of K and V. A may be None at P = 1, and B at P <= 2.
    kv_gradient_scratch : contiguous, plan.kv_gradient_scratch_bytes bytes, optional
        Memory for sums of dk and dv in the accumulator's type. May be None at P = 1.

        Less is enough if ``plan.needs_kv_scratch_b`` is False, and dq is dense in any order of
        dimensions and begins at a multiple of ``plan.scratch_alignment`` bytes. Then dq can hold one
        of the sums until it is written. B may then be None at any P, and kv_gradient_scratch needs
        only ``plan.least_kv_gradient_scratch_bytes(with_kv_scratch_b=...)`` bytes.
    dlse : [B, H, Q], of lse's type, any strides; optional
        The gradient of lse; by default zeros.

    Raises
    ------
    InvalidProblemError, UnsupportedError
        An operand is not a tensor (see :class:`TensorRef`). The plan checks shapes, dtypes, sizes
        and overlaps, in the first ``run`` or in ``can_implement``.
    """

    cdef readonly TensorRef q
    cdef readonly TensorRef k
    cdef readonly TensorRef v
    cdef readonly TensorRef y
    cdef readonly TensorRef dy
    cdef readonly TensorRef lse
    cdef readonly TensorRef dlse
    cdef readonly TensorRef dq
    cdef readonly TensorRef dk
    cdef readonly TensorRef dv
    cdef readonly TensorRef scratch
    cdef readonly TensorRef kv_scratch_a
    cdef readonly TensorRef kv_scratch_b
    cdef readonly TensorRef kv_gradient_scratch

    def __cinit__(self, *, q, k, v, y, dy, lse, dq, dk, dv, scratch=None, kv_scratch_a=None,
                  kv_scratch_b=None, kv_gradient_scratch=None, dlse=None):
        self.q = as_tensor("q", q)
        self.k = as_tensor("k", k)
        self.v = as_tensor("v", v)
        self.y = as_tensor("y", y)
        self.dy = as_tensor("dy", dy)
        self.lse = as_tensor("lse", lse)
        self.dlse = as_tensor("dlse", dlse)
        self.dq = as_tensor("dq", dq)
        self.dk = as_tensor("dk", dk)
        self.dv = as_tensor("dv", dv)
        self.scratch = as_tensor("scratch", scratch)
        self.kv_scratch_a = as_tensor("kv_scratch_a", kv_scratch_a)
        self.kv_scratch_b = as_tensor("kv_scratch_b", kv_scratch_b)
        self.kv_gradient_scratch = as_tensor("kv_gradient_scratch", kv_gradient_scratch)


cdef class _Binding(RingBinding):
    """Two payloads of two pieces: K and V travel BESIDE the steps, dk and dv BEHIND them."""

    cdef attention_api.baracuda_attention_backward_ring_problem problem

    def __cinit__(self):
        self.problem.struct_size = sizeof(self.problem)
        self.problem.call.struct_size = sizeof(self.problem.call)
        self.call.program = attention_api.baracuda_attention_backward_ring_program()
        self.call.problem = &self.problem
        self.payloads[0].timing = c_api.BARACUDA_RING_BESIDE
        self.payloads[1].timing = c_api.BARACUDA_RING_BEHIND
        self.payloads[0].pieces = self.payloads[1].pieces = 2


cdef class RingAttentionBackwardPlan(RingAttentionBase):
    """The gradients of attention over a ring: dq, dk and dv. Made by :meth:`select`.

    Every rank makes the same plan. ``run`` rotates K and V as the forward does, and the sums of
    their gradients follow one round later. The other ranks add their shares of a chunk's
    gradients in the order of the schedule. The sum then comes home to the chunk's own rank, which
    adds its own share and rounds once. All sums are kept in the accumulator's type, so the
    gradients do not get worse as the ring grows. A run allocates nothing and never waits for the
    GPU.

    A row that sees no key has dq = 0. It adds nothing to dk and dv; on ``sm80`` and ``sm90a`` this
    holds only if the row's dy is finite. A key that no row sees has dk = dv = 0.

    Attributes
    ----------
    descriptor : RingAttentionDescriptor
    scratch_bytes : int
        Bytes of the scratch, at any world size. For each row and head it holds a sum of dq
        (head_dim numbers of the accumulator's type) and a few more numbers. ``sm80`` and ``sm90a``
        round Q up to whole tiles of 64 rows, and their deterministic kernels may keep several sums
        of dq.
    needs_kv_scratch_b : bool
        Whether a ring of more than two ranks needs ``kv_scratch_b``. False if dq can hold one chunk of
        ``kv_gradient_scratch``: dq is as large, and the kernel writes it after all steps. At equal
        lengths dq is as large with four or more query heads to a key head for f16 and bf16, and with
        two for the other types. The families `sm90a`, `sm80` and `host` write dq after all steps.
    """

    cdef readonly int64_t scratch_bytes
    cdef readonly bint needs_kv_scratch_b

    @staticmethod
    def select(descriptor, stream, preference=None):
        """Choose a kernel of the backward, load it, and return the plan.

        Parameters
        ----------
        descriptor : RingAttentionDescriptor
            The forward's descriptor.
        stream : Stream or what :class:`Stream` takes
            Gives the device: ``Stream.host()`` or a CUDA stream.
        preference : PlanPreference, optional

        Raises
        ------
        InvalidProblemError, UnsupportedError
            As :meth:`RingAttentionPlan.select`.
        """
        # Not imported above, because SPEC's module imports this one.
        from baracuda_kernels.ops.ring_attention._plan import SPEC

        cdef RingAttentionBackwardPlan self = RingAttentionBackwardPlan.__new__(
            RingAttentionBackwardPlan, MADE_BY_SELECT)
        family = self.choose(SPEC, descriptor, stream, preference, Direction.BACKWARD)
        self.kernel = load_backward_kernel(family, self.descriptor, self.device)
        self.scratch_bytes = _families.backward_scratch_bytes(family, self.descriptor, True)
        self.needs_kv_scratch_b = _needs_kv_scratch_b(self.descriptor, self.kernel.number)
        return self

    @property
    def kv_gradient_scratch_bytes(self):
        """Bytes of ``kv_gradient_scratch``, at any world size above 1.

        Four chunks of 2 * B * Hkv * K * D numbers of the accumulator's type, each rounded up to a
        multiple of `scratch_alignment`. See also `least_kv_gradient_scratch_bytes`.
        """
        return _CHUNKS * _sum_bytes(self.descriptor)

    def least_kv_gradient_scratch_bytes(self, with_kv_scratch_b=False):
        """Bytes of ``kv_gradient_scratch`` that are enough where dq holds one of the sums.

        Three chunks instead of four, at any world size above 1. Without ``kv_scratch_b`` also
        `kv_scratch_elements` elements, which receive K and V. If `needs_kv_scratch_b` is True,
        `kv_gradient_scratch_bytes`.

        Parameters
        ----------
        with_kv_scratch_b : bool, default False
            Whether ``kv_scratch_b`` is given.

        Raises
        ------
        InvalidProblemError
            with_kv_scratch_b is not a bool.
        """
        cdef RingAttentionDescriptor d = self.descriptor
        is_given = flag("with_kv_scratch_b", with_kv_scratch_b)
        if self.needs_kv_scratch_b:
            return self.kv_gradient_scratch_bytes
        received = 0 if is_given else 2 * int(kv_elements(d)) * d.itemsize
        return (_CHUNKS - 1) * _sum_bytes(d) + received

    def step(self, stream, *, q, k, v, dy, dk, dv, y=None, lse=None, dlse=None, dq=None,
             scratch=None, rank=0, origin=0, world_size=1, first=True, last=True):
        """One step, for callers who send K and V, and add dk and dv, themselves.

        Adds what the keys of ``origin`` contribute to dq of ``rank``'s rows, and writes what these
        rows contribute to dk and dv of those keys.

        Parameters
        ----------
        stream : Stream or a source that :class:`Stream` takes
        q, dy : [B, H, Q, D]
            As in :class:`RingAttentionBackwardArgs`.
        k, v : [B, Hkv, K, D]
            Any strides with a contiguous last dimension.
        dk, dv : [B, Hkv, K, D], written
            This step's share of the chunk's gradients. Both have the accumulator's type, or both
            the operands'.
        y : [B, H, Q, D], optional
            The forward's output. The first step needs it.
        lse : [B, H, Q], optional
            The forward's lse, over the keys of all steps. The first step needs it.
        dlse : [B, H, Q], optional
            The gradient of lse, which the first step reads; by default zeros.
        dq : [B, H, Q, D], optional
            Written by the last step, which needs it.
        scratch : plan.scratch_bytes bytes, optional
            Give the same memory to every step of a call, and use it for nothing else from the first
            step to the last. May be None if the size is 0.
        rank : int, default 0
            The rank whose rows these are. The positions follow from `rank`, `origin` and
            `world_size`.
        origin : int, default 0
            The rank whose keys these are.
        world_size : int, default 1
            Number of ranks.
        first : bool, default True
            The first step of a call: the sum of dq starts here.
        last : bool, default True
            The last step of a call: dq is rounded and written.

        Raises
        ------
        InvalidProblemError, MisalignedOperandError, WorkspaceTooSmallError
            An argument is wrong or missing; nothing was launched.
        KeyboardInterrupt
            Ctrl-C while the host computed. The outputs are then undefined.
        CudaError
            The launch failed.
        """
        cdef Stream one = as_stream(stream)
        cdef attention_api.baracuda_attention_backward_params params
        cdef RingAttentionDescriptor d = self.descriptor
        cdef AttentionOperands checks = self.kernel.checks()
        self.refuse_stream(one)
        _begin(d, &params)
        self.place(rank, origin, world_size, &params.step)
        checks.bind_query(d, as_tensor("q", q), &params.step)
        checks.bind_keys(d, as_tensor("k", k), as_tensor("v", v), &params.step)
        if flag("first", first):
            params.step.flags |= attention_api.BARACUDA_STEP_FIRST
            checks.bind_results(d, as_tensor("y", y), as_tensor("lse", lse), &params)
        if flag("last", last):
            params.step.flags |= attention_api.BARACUDA_STEP_LAST
            checks.bind_dq(d, as_tensor("dq", dq), &params)
        checks.bind_row_gradients(d, as_tensor("dy", dy), as_tensor("dlse", dlse), &params)
        checks.bind_key_gradients(d, as_tensor("dk", dk), as_tensor("dv", dv), &params)
        self.bind_scratch(checks, as_tensor("scratch", scratch), &params)
        checks.no_overlaps()
        self.kernel.backward(&params, one)

    cdef int bind_scratch(self, AttentionOperands checks, TensorRef scratch,
                          attention_api.baracuda_attention_backward_params* params) except -1:
        cdef TensorRef view
        if self.scratch_bytes > 0:
            view = checks.workspace("scratch", scratch, self.scratch_bytes)
            params.step.state = view.data
        return 0

    cdef RingBinding check(self, object given, int64_t world_size):
        cdef RingAttentionDescriptor d = self.descriptor
        cdef AttentionOperands checks = self.kernel.checks()
        cdef _Binding binding = _Binding()
        cdef attention_api.baracuda_attention_backward_params* params = &binding.problem.call
        cdef RingAttentionBackwardArgs args
        if not isinstance(given, RingAttentionBackwardArgs):
            raise InvalidProblemError(
                f"args: got {type(given).__name__}, must be RingAttentionBackwardArgs")
        args = given
        binding.problem.kernel = self.kernel.number
        binding.problem.layout = d.c_layout
        _begin(d, params)
        checks.bind_query(d, args.q, &params.step)
        in_dq = world_size > 1 and self.keeps_share_in_dq(args, world_size)
        own_b = args.kv_scratch_b is not None or not in_dq
        self.bind_chunks(checks, args.k, args.v, args.kv_scratch_a, args.kv_scratch_b, world_size,
                         own_b, &params.step, &binding.payloads[0])
        checks.bind_results(d, args.y, args.lse, params)
        checks.bind_gradients(d, args.dy, args.dlse, args.dq, args.dk, args.dv, params)
        self.bind_scratch(checks, args.scratch, params)
        binding.call.payload_count = 1
        if world_size > 1:
            self.bind_sums(checks, args.kv_gradient_scratch, in_dq, own_b, binding)
        if in_dq:
            self.bind_share_in_dq(checks, args.dq, own_b, binding)
        checks.no_overlaps()
        binding.operands = checks
        return binding

    cdef bint keeps_share_in_dq(self, RingAttentionBackwardArgs args, int64_t world_size) except -1:
        """Whether dq holds the share that is kept apart: if it can, and memory was saved for that."""
        if self.needs_kv_scratch_b:
            return False
        sums = args.kv_gradient_scratch
        is_short = sums is not None and sums.nbytes < self.kv_gradient_scratch_bytes
        return is_short or (args.kv_scratch_b is None and world_size > 2)

    cdef int bind_sums(self, AttentionOperands checks, TensorRef scratch, bint in_dq, bint own_b,
                       _Binding binding) except -1:
        cdef RingAttentionDescriptor d = self.descriptor
        cdef c_api.baracuda_ring_payload* sums = &binding.payloads[1]
        nbytes = self.least_kv_gradient_scratch_bytes(own_b) if in_dq \
            else self.kv_gradient_scratch_bytes
        cdef TensorRef view = checks.workspace(
            "kv_gradient_scratch", scratch, min(nbytes, 2 ** 63 - 1))
        cdef char* data = <char*>view.data
        cdef int64_t chunk = _sum_bytes(d)
        cdef int i
        binding.call.payload_count = 2
        sums.piece_bytes[0] = sums.piece_bytes[1] = \
            kv_elements(d) * accumulator_of(d.element).itemsize
        sums.own[0] = data
        sums.own[1] = data + sums.piece_bytes[0]
        for i in range(_CHUNKS - 1):
            sums.buffers[i] = data + (i + 1) * chunk
        return 0

    cdef int bind_share_in_dq(self, AttentionOperands checks, TensorRef dq, bint own_b,
                              _Binding binding) except -1:
        """The share that is kept apart goes to dq. Without kv_scratch_b its place in the scratch
        receives K and V."""
        cdef RingAttentionDescriptor d = self.descriptor
        cdef attention_api.baracuda_attention_backward_params* params = &binding.problem.call
        why = ("where kv_scratch_b is None or kv_gradient_scratch has less than "
               f"{self.kv_gradient_scratch_bytes} bytes")
        checks.aligned(f"dq, {why}", dq, SCRATCH_ALIGNMENT)
        require_dense("dq", dq, (d.batch_size, d.num_heads, d.query_len, d.head_dim),
                      params.dq_strides, why)
        binding.problem.dq_holds_share = 1
        if not own_b:
            binding.payloads[0].buffers[0] = binding.payloads[1].buffers[2]
        binding.payloads[1].buffers[2] = params.dq
        return 0


cdef int _begin(RingAttentionDescriptor d,
                attention_api.baracuda_attention_backward_params* params) except -1:
    memset(params, 0, sizeof(params[0]))
    params.struct_size = sizeof(params[0])
    d.fill(&params.step)
    params.step.lse_element = attention_api.BARACUDA_F64 \
        if d.c_element == attention_api.BARACUDA_F64 else attention_api.BARACUDA_F32
    return 0


cdef bint _needs_kv_scratch_b(RingAttentionDescriptor d, int32_t kernel) except -1:
    nbytes = int(d.batch_size) * d.num_heads * d.query_len * d.head_dim * d.itemsize
    finishes = attention_api.baracuda_attention_backward_finishes(kernel)
    return finishes != 1 or nbytes < _sum_bytes(d)


cdef object _sum_bytes(RingAttentionDescriptor d):
    """Bytes of one chunk's sums of dk and dv, rounded up to the scratch alignment."""
    # A Python int, because four chunks may need more bytes than 64 bits can count.
    nbytes = 2 * int(kv_elements(d)) * accumulator_of(d.element).itemsize
    return -(-nbytes // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
