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
        Number of sequences in the batch, B.
    num_heads : int
        Number of query heads, H.
    query_len : int
        Rows of Q on one rank; the whole sequence has P times as many. May be 0.
    key_len : int
        Rows of K and V that one rank holds; may differ from `query_len`.
    head_dim : int
        Elements of a head, D.
    scale : float, optional
        Factor of the scores; ``1/sqrt(head_dim)`` by default. It is passed to the kernel as a
        float64. Any finite value is legal; the tensor-core kernels need it > 0.
    is_causal : bool, default False
        A row sees only the keys with ``k_pos <= q_pos``, by global positions.
    element : ElementKind, default F32
        The element type of q, k, v and y.
    num_kv_heads : int, optional
        Number of K/V heads, Hkv, a divisor of H (grouped-query attention); by default H.
    sequence_layout : SequenceLayout, default CONTIGUOUS
        Which global positions a rank's rows have.

    Raises
    ------
    InvalidProblemError
        A value has the wrong type, or is not the name of an enum's member. The numbers are checked
        by :meth:`~AttentionDescriptor.validate`, which ``select`` and ``explain`` call.
    """

    def __cinit__(self, batch_size, num_heads, query_len, key_len, head_dim, scale=None,
                  is_causal=False, element=ElementKind.F32, *, num_kv_heads=None,
                  sequence_layout=SequenceLayout.CONTIGUOUS):
        self.sequence_layout = SequenceLayout.parse(sequence_layout, "sequence_layout")
        self.c_layout = self.sequence_layout

    def _extra(self):
        return {"sequence_layout": self.sequence_layout}
