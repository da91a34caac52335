# cython: language_level=3
"""The Ring Attention problem of one rank."""

from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

from baracuda_kernels._core._enums import ElementKind, SequenceLayout


cdef class RingAttentionDescriptor(AttentionDescriptor):
    """RingAttentionDescriptor(batch_size, num_heads, query_len, key_len, head_dim, scale=None, \
is_causal=False, element=ElementKind.F32, *, num_kv_heads=None, \
sequence_layout=SequenceLayout.CONTIGUOUS)

    Exact attention of one rank's query shard over the keys of a whole ring.

    Liu, Zaharia, Abbeel 2023, arXiv:2310.01889. Frozen, hashable, picklable.

    Parameters
    ----------
    batch_size : int
        Sequences in the batch (B).
    num_heads : int
        Query heads (H).
    query_len : int
        Rows of Q that one rank holds; the global length is P times that. 0 is legal.
    key_len : int
        Rows of K and V that one rank holds; as many or others.
    head_dim : int
        Elements of a head (D).
    scale : float, optional
        Factor on the scores, float64 to the kernel; ``1/sqrt(head_dim)`` by default. Any finite
        value is legal; the tensor-core kernels need it > 0.
    is_causal : bool, default False
        Mask keys whose global position is beyond the query's (``k_pos <= q_pos`` stays).
    element : ElementKind, default F32
        Of q, k, v and y.
    num_kv_heads : int, optional
        Hkv, a divisor of H (grouped-query attention); H by default.
    sequence_layout : SequenceLayout, default CONTIGUOUS
        Which global positions a rank holds.

    Raises
    ------
    InvalidProblemError
        A value of the wrong type or name. Whether the numbers make a problem
        :meth:`~AttentionDescriptor.validate` tells, which ``select`` and ``explain`` call.
    """

    def __cinit__(self, batch_size, num_heads, query_len, key_len, head_dim, scale=None,
                  is_causal=False, element=ElementKind.F32, *, num_kv_heads=None,
                  sequence_layout=SequenceLayout.CONTIGUOUS):
        self.sequence_layout = SequenceLayout.parse(sequence_layout)
        self.c_layout = self.sequence_layout

    def _extra(self):
        return {"sequence_layout": self.sequence_layout}
