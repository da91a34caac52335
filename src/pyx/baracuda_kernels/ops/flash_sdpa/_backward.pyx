# cython: language_level=3
"""The backward of attention on one device."""

from libc.stdint cimport int64_t
from libc.string cimport memset

from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels._core._operands cimport SCRATCH_ALIGNMENT
from baracuda_kernels._core._plan cimport MADE_BY_SELECT, KernelPlan
from baracuda_kernels._core._stream cimport Stream, as_stream
from baracuda_kernels._core._tensor cimport TensorRef, as_tensor
from baracuda_kernels.ops.attention._kernel cimport AttentionKernel, load_backward_kernel
from baracuda_kernels.ops.attention._operands cimport AttentionOperands
from baracuda_kernels.ops.flash_sdpa._descriptor cimport FlashSdpaDescriptor

from baracuda_kernels._core._enums import Direction
from baracuda_kernels._core._errors import InvalidProblemError
from baracuda_kernels.ops.attention import _families


cdef class FlashSdpaBackwardArgs:
    """FlashSdpaBackwardArgs(*, q, k, v, y, dy, lse, dq, dk, dv, scratch=None, dlse=None)

    Views of the operands of one backward call.

    The inputs may have any strides whose last dimension is contiguous: dy may be expanded or
    transposed. The outputs too, if none of their elements overlap.

    Parameters
    ----------
    q : [B, H, Q, D]
    k, v : [B, Hkv, K, D]
    y : [B, H, Q, D]
        The result of the forward.
    dy : [B, H, Q, D]
        The gradient of y.
    lse : [B, H, Q], float32 (float64 for F64 operands), any strides
        The result of the forward, in the accumulator's type.
    dq : [B, H, Q, D], written
    dk, dv : [B, Hkv, K, D], written
        Both have the operands' type, or both the accumulator's: the sums over the heads of a group
        are then not rounded to 16 bits.
    scratch : contiguous, plan.scratch_bytes bytes; optional
        None if scratch_bytes is 0.
    dlse : [B, H, Q], of lse's type, any strides; optional
        The gradient of lse. None: zeros.

    Raises
    ------
    InvalidProblemError, UnsupportedError
        An operand is not a tensor, as :class:`TensorRef` says. The plan checks shapes, dtypes and
        overlaps, in the first ``run`` or in ``can_implement``.
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
    cdef FlashSdpaBackwardPlan plan                       # the plan for which params were checked
    cdef attention_api.baracuda_attention_backward_params params

    def __cinit__(self, *, q, k, v, y, dy, lse, dq, dk, dv, scratch=None, dlse=None):
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


cdef FlashSdpaBackwardArgs _checked(object args):
    if not isinstance(args, FlashSdpaBackwardArgs):
        raise InvalidProblemError(f"args: got {type(args).__name__}, must be FlashSdpaBackwardArgs")
    return <FlashSdpaBackwardArgs>args


cdef class FlashSdpaBackwardPlan(KernelPlan):
    """Gradients of attention on one device: dq, dk and dv. Made by :meth:`select`.

    The scores are computed again from q, k and lse. Every sum is in the accumulator's type and
    rounded once. A row that sees no key has dq = 0 and adds nothing to dk and dv (on ``sm80`` and
    ``sm90a`` if its dy is finite). A key that no row sees has dk = dv = 0.

    Attributes
    ----------
    descriptor : FlashSdpaDescriptor
    scratch_bytes : int
        Bytes of the scratch. For each row and head it holds 2 to 8 numbers of the accumulator's
        type and, except on ``simt``, a sum of dq (head_dim numbers). ``sm80`` and ``sm90a`` round Q
        up to whole tiles of 64 rows. If there are few heads, their deterministic kernels keep
        several sums of dq: up to 4 on ``sm80``, up to 8 on ``sm90a``.
    """

    cdef AttentionKernel kernel
    cdef readonly int64_t scratch_bytes

    @staticmethod
    def select(descriptor, stream, preference=None):
        """Choose a kernel of the backward and load it.

        Parameters
        ----------
        descriptor : FlashSdpaDescriptor
            The descriptor of the forward.
        stream : Stream or a source that :class:`Stream` takes
            Its device is the plan's: ``Stream.host()`` or a CUDA stream.
        preference : PlanPreference, optional

        Raises
        ------
        InvalidProblemError, UnsupportedError
            As :meth:`RingAttentionPlan.select`.
        """
        # Imported here, since the module of SPEC imports this one.
        from baracuda_kernels.ops.flash_sdpa._plan import SPEC

        cdef FlashSdpaBackwardPlan self = FlashSdpaBackwardPlan.__new__(
            FlashSdpaBackwardPlan, MADE_BY_SELECT)
        family = self.choose(SPEC, descriptor, stream, preference, Direction.BACKWARD)
        self.kernel = load_backward_kernel(family, self.descriptor, self.device)
        self.scratch_bytes = _families.backward_scratch_bytes(family, self.descriptor)
        return self

    @property
    def scratch_alignment(self):
        """Alignment of the scratch's address, in bytes."""
        return SCRATCH_ALIGNMENT

    def can_implement(self, args):
        """Raise the error that ``run`` would raise for ``args``; return None if it would run.

        Parameters
        ----------
        args : FlashSdpaBackwardArgs

        Raises
        ------
        InvalidProblemError, MisalignedOperandError, WorkspaceTooSmallError
            As :meth:`run`.
        """
        self.bind(_checked(args))

    def run(self, stream, args):
        """Enqueue the backward's kernels on ``stream``. Allocates nothing and does not wait.

        Parameters
        ----------
        stream : Stream or a source that :class:`Stream` takes
        args : FlashSdpaBackwardArgs

        Raises
        ------
        InvalidProblemError, MisalignedOperandError, WorkspaceTooSmallError
            An operand is wrong; nothing was launched.
        KeyboardInterrupt
            Ctrl-C while the host computed. The outputs are then undefined.
        CudaError
            A launch failed.
        """
        cdef FlashSdpaBackwardArgs given = _checked(args)
        cdef Stream one = as_stream(stream)
        cdef attention_api.baracuda_attention_backward_params params
        self.refuse_stream(one)
        if given.plan is not self:
            self.bind(given)
        # A copy, since another thread may bind these arguments to another plan meanwhile.
        params = given.params
        self.kernel.backward(&params, one)

    cdef int bind(self, FlashSdpaBackwardArgs args) except -1:
        cdef FlashSdpaDescriptor d = self.descriptor
        cdef AttentionOperands checks = self.kernel.checks()
        cdef attention_api.baracuda_attention_backward_params params
        cdef TensorRef scratch
        memset(&params, 0, sizeof(params))
        params.struct_size = sizeof(params)
        d.fill(&params.step)
        params.step.flags |= attention_api.BARACUDA_STEP_FIRST | attention_api.BARACUDA_STEP_LAST
        checks.bind_query(d, args.q, &params.step)
        checks.bind_keys(d, args.k, args.v, &params.step)
        checks.bind_results(d, args.y, args.lse, &params)
        checks.bind_gradients(d, args.dy, args.dlse, args.dq, args.dk, args.dv, &params)
        if self.scratch_bytes > 0:
            scratch = checks.workspace("scratch", args.scratch, self.scratch_bytes)
            params.step.state = scratch.data
        checks.no_overlaps()
        args.params = params
        args.plan = self
        return 0
