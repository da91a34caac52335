# cython: language_level=3
"""The attention problem on one device."""

from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

from baracuda_kernels._core._enums import ElementKind


cdef class FlashSdpaDescriptor(AttentionDescriptor):
    """FlashSdpaDescriptor(batch_size, num_heads, query_len, key_len, head_dim, scale=None, \
is_causal=False, element=ElementKind.F32, *, num_kv_heads=None)

    Scaled dot-product attention on one device. Frozen, hashable, picklable.

    Parameters
    ----------
    batch_size : int
        Number of sequences in the batch, B.
    num_heads : int
        Number of query heads, H.
    query_len : int
        Rows of Q; may be 0.
    key_len : int
        Rows of K and V; as many or others.
    head_dim : int
        Elements of a head (D).
    scale : float, optional
        Factor on the scores; by default ``1/sqrt(head_dim)``.
    is_causal : bool, default False
        Query i sees the keys ``j <= i`` (top-left aligned).
    element : ElementKind, default F32
        Element type of q, k, v and y.
    num_kv_heads : int, optional
        Number of K/V heads, Hkv, a divisor of H; by default H.

    Raises
    ------
    InvalidProblemError
        As :class:`RingAttentionDescriptor`.
    """

    def __cinit__(self, batch_size, num_heads, query_len, key_len, head_dim, scale=None,
                  is_causal=False, element=ElementKind.F32, *, num_kv_heads=None):
        pass
