import enum
from typing import Any, ClassVar, Self

class _Named(enum.IntEnum):  # type: ignore[misc]  # a base has no members
    @classmethod
    def parse(cls, value: Self | str | int, name: str | None = None) -> Self: ...
    def __reduce_ex__(self, protocol: object) -> tuple[type[Self], tuple[int]]: ...

class OpCategory(_Named):
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

class OpKind(_Named):  # type: ignore[misc]  # a base has no members
    category: ClassVar[OpCategory]
    def __init_subclass__(cls, category: OpCategory, **more: Any) -> None: ...

def kind_of(category: OpCategory) -> type[OpKind] | None: ...
def kinds() -> tuple[type[OpKind], ...]: ...

class Direction(_Named):
    FORWARD = 0
    BACKWARD = 1

class ElementKind(_Named):
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
    @classmethod
    def parse(cls, value: Any, name: str | None = None) -> Self: ...
    @property
    def bits(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def dtype_name(self) -> str | None: ...
    @property
    def typestr(self) -> str | None: ...
    @classmethod
    def of_dtype(cls, dtype: Any) -> ElementKind | None: ...

BY_DTYPE_NAME: dict[str, ElementKind]
BY_TYPESTR: dict[str, ElementKind]
BY_DLPACK: dict[tuple[int, int], ElementKind]

class MathPrecision(_Named):
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
    SM80 = 0
    SM89 = 1
    SM90A = 2
    HOST = 3

class BackendKind(_Named):
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
    RCR = 0
    RRR = 1

class EpilogueKind(_Named):
    IDENTITY = 0
    BIAS = 1
    BIAS_RELU = 2
    BIAS_GELU = 3
    BIAS_SILU = 4

class SequenceLayout(_Named):
    CONTIGUOUS = 0
    ZIGZAG = 1
    STRIPED = 2
