# cython: language_level=3
"""The vocabulary: enums that name ops, elements, precisions, architectures and backends."""

import enum


class _Named(enum.IntEnum):
    """IntEnum that reads as its name and can be looked up by it in any case."""

    @classmethod
    def parse(cls, value):
        """Member for ``value``: a member, its name in any case, or its number.

        Raises
        ------
        InvalidProblemError
            Nothing of that name or number; the message lists the valid names.
        """
        if isinstance(value, cls):
            return value
        try:
            if isinstance(value, str):
                return cls[value.upper()]
            if isinstance(value, int) and not isinstance(value, bool):
                return cls(value)
        except (KeyError, ValueError):
            pass
        from baracuda_kernels._core._errors import InvalidProblemError

        names = ", ".join(cls.__members__)
        raise InvalidProblemError(f"{cls.__name__}: got {value!r}, must be one of {names}")

    def __str__(self):
        return self.name

    def __reduce_ex__(self, protocol):
        return self.__class__, (int(self),)


class OpCategory(_Named):
    """Family of operations that a kernel belongs to."""

    GEMM = 0
    UNARY_ELEMENTWISE = 1
    BINARY_ELEMENTWISE = 2
    TERNARY_ELEMENTWISE = 3
    GATED_ACTIVATION = 4
    REDUCTION = 5
    SCAN = 6
    NORMALIZATION = 7
    SOFTMAX = 8
    CONVOLUTION = 9
    POOLING = 10
    ATTENTION = 11
    INDEXING = 12
    EMBEDDING = 13
    SHAPE_LAYOUT = 14
    SORTING = 15
    QUANTIZATION = 16
    RANDOM = 17
    LOSS = 18
    SEGMENT_OPS = 19
    IMAGE = 20
    FFT = 21
    LINALG = 22
    MOE = 23


class AttentionKind(_Named):
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


class ElementKind(_Named):
    """Element type of an operand.

    ``F32`` lets a kernel use TF32 tensor cores; ``F32_STRICT`` asks for full float32 arithmetic.
    Both are float32 in memory.
    """

    F16 = 0
    BF16 = 1
    F32 = 2
    F32_STRICT = 3
    F64 = 4
    S8 = 5
    U8 = 6
    I32 = 7
    I64 = 8
    BOOL = 9
    FP8_E4M3 = 10
    FP8_E5M2 = 11
    S4 = 12
    U4 = 13
    BIN = 14
    COMPLEX32 = 15
    COMPLEX64 = 16
    U32 = 17

    @property
    def bits(self):
        """Width of one element in bits."""
        return _BITS[self]

    @property
    def itemsize(self):
        """Bytes of one element; 0 for the packed sub-byte types."""
        return _BITS[self] // 8


_BITS = {
    ElementKind.F16: 16, ElementKind.BF16: 16, ElementKind.F32: 32, ElementKind.F32_STRICT: 32,
    ElementKind.F64: 64, ElementKind.S8: 8, ElementKind.U8: 8, ElementKind.I32: 32,
    ElementKind.I64: 64, ElementKind.BOOL: 8, ElementKind.FP8_E4M3: 8, ElementKind.FP8_E5M2: 8,
    ElementKind.S4: 4, ElementKind.U4: 4, ElementKind.BIN: 1, ElementKind.COMPLEX32: 64,
    ElementKind.COMPLEX64: 128, ElementKind.U32: 32,
}


class MathPrecision(_Named):
    """Precision of the multiplicands (not of the accumulator)."""

    F16 = 0
    BF16 = 1
    TF32 = 2
    F32 = 3
    F64 = 4
    INT8 = 5
    FP8_E4M3 = 6
    FP8_E5M2 = 7
    INT4 = 8
    BINARY = 9


class ArchSku(_Named):
    """Architecture that a kernel is written for: it runs there and, unless it ends in A, later."""

    SM80 = 0
    SM89 = 1
    SM90A = 2
    HOST = 3


class BackendKind(_Named):
    """Who wrote the kernel."""

    BESPOKE = 0
    CUTLASS = 1
    CUBLAS = 2
    CUDNN = 3
    CUFFT = 4
    CUSPARSE = 5
    CUSOLVER = 6
    CURAND = 7
    CUTENSOR = 8
    NPP = 9
    CVCUDA = 10
    FLASH_ATTENTION_V2 = 11
    FLASH_INFER = 12
    OZAKI = 13
    HOST = 14


class LayoutSku(_Named):
    """Row- or column-major order of A, B and C of a matrix product."""

    RCR = 0
    RRR = 1


class EpilogueKind(_Named):
    """What a matrix kernel does to its accumulator before it stores."""

    IDENTITY = 0
    BIAS = 1
    BIAS_RELU = 2
    BIAS_GELU = 3
    BIAS_SILU = 4


class SequenceLayout(_Named):
    """Which global positions a rank's L rows hold, of P ranks.

    ``CONTIGUOUS``: row ``i`` of rank ``r`` is at ``r*L + i``.
    ``ZIGZAG``: the sequence is cut into ``2P`` pieces and a rank holds piece ``r`` and piece
    ``2P-1-r``; with causal masks every rank then has the same work.
    ``STRIPED``: row ``i`` is at ``i*P + r`` (Brandon et al. 2023, arXiv:2311.09431).
    """

    CONTIGUOUS = 0
    ZIGZAG = 1
    STRIPED = 2
