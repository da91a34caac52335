# cython: language_level=3
"""The plain attention problem."""

from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

from baracuda_kernels._core._enums import ElementKind


cdef class FlashSdpaDescriptor(AttentionDescriptor):
    """FlashSdpaDescriptor(batch_size, num_heads, query_len, key_len, head_dim, scale=None, \
is_causal=False, element=ElementKind.F32, *, num_kv_heads=None)

    Scaled dot-product attention on one device. Frozen, hashable, picklable.

    Parameters
    ----------
    batch_size : int
        Sequences in the batch (B).
    num_heads : int
        Query heads (H).
    query_len : int
        Rows of Q; 0 is legal.
    key_len : int
        Rows of K and V; as many or others.
    head_dim : int
        Elements of a head (D).
    scale : float, optional
        Factor on the scores; ``1/sqrt(head_dim)`` by default.
    is_causal : bool, default False
        Key j stays for query i if ``j <= i`` (aligned at the top left).
    element : ElementKind, default F32
        Of q, k, v and y.
    num_kv_heads : int, optional
        Hkv, a divisor of H; H by default.

    Raises
    ------
    InvalidProblemError
        As :class:`RingAttentionDescriptor`.
    """

    def __cinit__(self, batch_size, num_heads, query_len, key_len, head_dim, scale=None,
                  is_causal=False, element=ElementKind.F32, *, num_kv_heads=None):
        pass
