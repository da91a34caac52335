# cython: language_level=3
"""The attention step without a ring: one launch, no state."""

from functools import partial

from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels._core._plan cimport MADE_BY_SELECT, KernelPlan
from baracuda_kernels._core._stream cimport Stream, as_stream
from baracuda_kernels._core._tensor cimport TensorRef, as_tensor
from baracuda_kernels.ops.attention._kernel cimport AttentionKernel, load_kernel
from baracuda_kernels.ops.attention._operands cimport AttentionOperands
from baracuda_kernels.ops.flash_sdpa._descriptor cimport FlashSdpaDescriptor

from baracuda_kernels._core._enums import Direction
from baracuda_kernels._core._errors import InvalidProblemError
from baracuda_kernels._core._selection import OpSpec
from baracuda_kernels.ops.attention import _families, _options
from baracuda_kernels.ops.attention._kind import AttentionKind
from baracuda_kernels.ops.flash_sdpa._backward import FlashSdpaBackwardPlan


cdef class FlashSdpaArgs:
    """FlashSdpaArgs(*, q, k, v, y, lse=None)

    Views of the operands of one attention call.

    Parameters
    ----------
    q : [B, H, Q, D]
    k, v : [B, Hkv, K, D]
    y : [B, H, Q, D], written
        Any strides with a contiguous last dimension, for all four. y must not overlap an operand.
    lse : [B, H, Q], float32 or the operands' type, contiguous, written; optional
        Natural logarithm of each row's sum of exponentials; ``-inf`` for a row that sees no key.

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
    cdef readonly TensorRef lse
    cdef FlashSdpaPlan plan                               # the plan for which step was checked
    cdef attention_api.baracuda_attention_step_params step

    def __cinit__(self, *, q, k, v, y, lse=None):
        self.q = as_tensor("q", q)
        self.k = as_tensor("k", k)
        self.v = as_tensor("v", v)
        self.y = as_tensor("y", y)
        self.lse = as_tensor("lse", lse)


cdef FlashSdpaArgs _checked(object args):
    if not isinstance(args, FlashSdpaArgs):
        raise InvalidProblemError(f"args: got {type(args).__name__}, must be FlashSdpaArgs")
    return <FlashSdpaArgs>args


cdef class FlashSdpaPlan(KernelPlan):
    """Attention on one device, with the ring's kernels. Made by :meth:`select`.

    Attributes
    ----------
    descriptor : FlashSdpaDescriptor
    """

    cdef AttentionKernel kernel

    @staticmethod
    def select(descriptor, stream, preference=None):
        """Choose a kernel and load it.

        Parameters
        ----------
        descriptor : FlashSdpaDescriptor
        stream : Stream or a source that :class:`Stream` takes
            Its device is the plan's: ``Stream.host()`` or a CUDA stream.
        preference : PlanPreference, optional

        Raises
        ------
        InvalidProblemError, UnsupportedError
            As :meth:`RingAttentionPlan.select`.
        """
        cdef FlashSdpaPlan self = FlashSdpaPlan.__new__(FlashSdpaPlan, MADE_BY_SELECT)
        family = self.choose(SPEC, descriptor, stream, preference, Direction.FORWARD)
        self.kernel = load_kernel(family, self.descriptor, self.device)
        return self

    def can_implement(self, args):
        """Raise the error that ``run`` would raise for ``args``; return None if it would run.

        Raises
        ------
        InvalidProblemError, MisalignedOperandError
            As :meth:`run`.
        """
        self.bind(_checked(args))

    def run(self, stream, args):
        """Enqueue the attention call on ``stream``. Allocates nothing and does not wait.

        Parameters
        ----------
        stream : Stream or a source that :class:`Stream` takes
        args : FlashSdpaArgs

        Raises
        ------
        InvalidProblemError, MisalignedOperandError
            An operand is wrong; nothing was launched.
        KeyboardInterrupt
            Ctrl-C while the host computed. The outputs are then undefined.
        CudaError
            The launch failed.
        """
        cdef FlashSdpaArgs given = _checked(args)
        cdef Stream one = as_stream(stream)
        cdef attention_api.baracuda_attention_step_params step
        self.refuse_stream(one)
        if given.plan is not self:
            self.bind(given)
        # A copy, since another thread may bind these arguments to another plan meanwhile.
        step = given.step
        self.kernel.step(&step, one)

    cdef int bind(self, FlashSdpaArgs args) except -1:
        cdef FlashSdpaDescriptor d = self.descriptor
        cdef AttentionOperands checks = self.kernel.checks()
        cdef attention_api.baracuda_attention_step_params step
        d.fill(&step)
        step.flags |= attention_api.BARACUDA_STEP_FIRST | attention_api.BARACUDA_STEP_LAST
        checks.bind_query(d, args.q, &step)
        checks.bind_keys(d, args.k, args.v, &step)
        checks.bind_outputs(d, args.y, args.lse, &step)
        checks.no_overlaps()
        args.step = step
        args.plan = self
        return 0


SPEC = OpSpec(
    "flash_sdpa",
    FlashSdpaDescriptor,
    {Direction.FORWARD: FlashSdpaPlan, Direction.BACKWARD: FlashSdpaBackwardPlan},
    partial(_families.skus, AttentionKind.FLASH_ATTENTION, tuple(Direction)),
    partial(_families.candidates, AttentionKind.FLASH_ATTENTION, several_steps=False),
    options=_options.OPTIONS,
    describe=partial(_options.describe, FlashSdpaDescriptor),
)
