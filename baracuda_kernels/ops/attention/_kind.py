"""The ops of attention, by name."""

from baracuda_kernels._core._enums import OpCategory, OpKind


class AttentionKind(OpKind, category=OpCategory.ATTENTION):
    """Operations of :attr:`OpCategory.ATTENTION`."""

    ROPE = 0
    ALIBI = 1
    SDPA = 2
    FLASH_ATTENTION = 3
    KV_CACHE = 4
    PAGED_ATTENTION = 5
    HYPER_CONNECTION = 6
    SSD_CHUNK_SCAN = 7
    SELECTIVE_SCAN = 8
    BLOCK_SPARSE_ATTENTION = 9
    RING_ATTENTION = 10
