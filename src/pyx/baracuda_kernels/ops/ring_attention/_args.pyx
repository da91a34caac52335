# cython: language_level=3
"""The arguments of one rank."""

from baracuda_kernels._core._tensor cimport as_tensor


cdef class RingAttentionArgs(RingArgs):
    """RingAttentionArgs(*, q, y, kv_scratch_a=None, kv_scratch_b=None, accumulator_scratch=None, \
lse=None, k=None, v=None)

    Views of one rank's operands and scratch, checked once and used for any number of runs.

    An operand may be any object that :class:`TensorRef` takes.

    Parameters
    ----------
    q : [B, H, Q, D]
        Any strides with a contiguous last dimension.
    y : [B, H, Q, D], written
        The attention output. Must not overlap any other operand.
    kv_scratch_a, kv_scratch_b : contiguous, plan.kv_scratch_elements elements, optional
        The two receive buffers. If ``k`` and ``v`` are not given, write this rank's K
        [B, Hkv, K, D], followed by its V, into scratch A before every run: a run may overwrite it.
    accumulator_scratch : contiguous, plan.accumulator_scratch_bytes bytes, optional
        The float32 state (float64 for F64 operands) between steps.
    lse : [B, H, Q], float32 or the operands' type, contiguous, written; optional
        The natural logarithm of each row's sum of exponentials; ``-inf`` if the row sees no key.
    k, v : [B, Hkv, K, D], optional, together
        This rank's chunk, which is read and sent from your memory, not staged in scratch A. With
        more than one rank, k and v must each be dense, in any order of dimensions, but in the same
        order on every rank.

    Scratch that is not needed may be None. The accumulator and scratch B are not needed at P = 1.
    If ``k`` and ``v`` are given, scratch A is not needed at P = 1, and scratch B not at P <= 2.

    Raises
    ------
    InvalidProblemError, UnsupportedError
        An operand is not a tensor (see :class:`TensorRef`). The plan checks shapes, dtypes, sizes
        and overlaps, in the first ``run`` or in ``can_implement``.
    """

    def __cinit__(self, *, q, y, kv_scratch_a=None, kv_scratch_b=None, accumulator_scratch=None,
                  lse=None, k=None, v=None):
        self.q = as_tensor("q", q)
        self.y = as_tensor("y", y)
        self.kv_scratch_a = as_tensor("kv_scratch_a", kv_scratch_a)
        self.kv_scratch_b = as_tensor("kv_scratch_b", kv_scratch_b)
        self.accumulator_scratch = as_tensor("accumulator_scratch", accumulator_scratch)
        self.lse = as_tensor("lse", lse)
        self.k = as_tensor("k", k)
        self.v = as_tensor("v", v)

    def __repr__(self):
        given = [f"{name}={getattr(self, name)!r}"
                 for name in ("q", "y", "kv_scratch_a", "kv_scratch_b", "accumulator_scratch",
                              "lse", "k", "v")
                 if getattr(self, name) is not None]
        return f"RingAttentionArgs({', '.join(given)})"
