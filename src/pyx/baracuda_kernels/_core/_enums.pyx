# cython: language_level=3
"""The vocabulary: enums that name ops, elements, precisions, architectures and backends."""

import enum


class _Named(enum.IntEnum):
    """IntEnum that prints as its name and can be looked up by its name in any case."""

    @classmethod
    def parse(cls, value, name=None):
        """Member for ``value``.

        Parameters
        ----------
        value : member, str or int
            A member, its name in any case, or its number.
        name : str, optional
            The argument's name, for messages; by default the enum's.

        Raises
        ------
        InvalidProblemError
            No member has that name or number, or it is a member of another enum; the message lists
            the valid names.
        """
        if isinstance(value, cls):
            return value
        try:
            if isinstance(value, str):
                return cls[value.upper()]
            if isinstance(value, int) and not isinstance(value, (bool, enum.Enum)):
                return cls(value)
        except (KeyError, ValueError):
            pass
        from baracuda_kernels._core._errors import InvalidProblemError

        names = ", ".join(cls.__members__)
        raise InvalidProblemError(f"{name or cls.__name__}: got {value!r}, must be one of {names}")

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


class OpKind(_Named):
    """Base of the enums that name the ops of a category. There is one enum for each category.

    With ``class MyKind(OpKind, category=OpCategory.SCAN)``, ``KernelSku("SCAN", "MY_SCAN", …)`` and
    the filter ``skus(op="MY_SCAN")`` find its names. An op without a name is a number.

    Attributes
    ----------
    category : OpCategory
    """

    def __init_subclass__(cls, category, **more):
        super().__init_subclass__(**more)
        known = _KINDS.get(category)
        # A module that is loaded again defines its class again.
        if known is not None and _place(known) != _place(cls):
            from baracuda_kernels._core._errors import InvalidProblemError

            raise InvalidProblemError(
                f"{cls.__name__}: got {category}, must be one that "
                f"{known.__name__} does not name")
        cls.category = category
        _KINDS[category] = cls


_KINDS = {}  # OpCategory -> the OpKind that names its ops


def _place(cls):
    return cls.__module__, cls.__qualname__


def kind_of(category):
    """The enum that names the ops of a category; None if none is loaded."""
    return _KINDS.get(category)


def kinds():
    """All enums that name ops."""
    return tuple(_KINDS.values())


class Direction(_Named):
    """``FORWARD``: a kernel computes an op's outputs. ``BACKWARD``: it computes gradients."""

    FORWARD = 0
    BACKWARD = 1


class ElementKind(_Named):
    """Element type of an operand.

    ``F32`` allows TF32 tensor cores. ``F32_STRICT`` needs full float32 arithmetic. Both are float32
    in memory.
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

    @classmethod
    def parse(cls, value, name=None):
        """Member for ``value``.

        Parameters
        ----------
        value : member, str, int or dtype
            A member, its name in any case, its number, or a dtype of NumPy, PyTorch, CuPy or JAX.
        name : str, optional
            The argument's name, for messages; by default the enum's.

        Raises
        ------
        InvalidProblemError
            ``value`` is none of these.
        """
        if not isinstance(value, (str, int)):
            found = cls.of_dtype(value)
            if found is not None:
                return found
        return super().parse(value, name)

    @property
    def bits(self):
        """Width of one element in bits."""
        return _FORMATS[self].bits

    @property
    def itemsize(self):
        """Bytes of one element; 0 for the packed sub-byte types."""
        return _FORMATS[self].bits // 8

    @property
    def dtype_name(self):
        """Name of the dtype in NumPy (with ml_dtypes), PyTorch, CuPy and JAX; None without one."""
        return _FORMATS[self].dtype_name

    @property
    def typestr(self):
        """Typestr of the array interfaces, without the byte order; None without one."""
        return _FORMATS[self].typestr

    @classmethod
    def of_dtype(cls, dtype):
        """The element of a ``dtype`` of NumPy, PyTorch, CuPy or JAX, or of its name; None if
        unknown.

        float32 is :attr:`F32`.
        """
        name = dtype if isinstance(dtype, str) else \
            getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
        return BY_DTYPE_NAME.get(name.rpartition(".")[2])


class _Format:
    """The layout of an element in memory, and its names in other libraries."""

    def __init__(self, bits, dtype_name=None, dlpack_code=None, typestr=None):
        self.bits = bits
        self.dtype_name = dtype_name
        self.dlpack_code = dlpack_code
        self.typestr = typestr


_FORMATS = {
    ElementKind.F16: _Format(16, "float16", 2, "f2"),
    ElementKind.BF16: _Format(16, "bfloat16", 4),
    ElementKind.F32: _Format(32, "float32", 2, "f4"),
    ElementKind.F32_STRICT: _Format(32, "float32", 2, "f4"),
    ElementKind.F64: _Format(64, "float64", 2, "f8"),
    ElementKind.S8: _Format(8, "int8", 0, "i1"),
    ElementKind.U8: _Format(8, "uint8", 1, "u1"),
    ElementKind.I32: _Format(32, "int32", 0, "i4"),
    ElementKind.I64: _Format(64, "int64", 0, "i8"),
    ElementKind.BOOL: _Format(8, "bool", 6, "b1"),
    ElementKind.FP8_E4M3: _Format(8, "float8_e4m3fn"),
    ElementKind.FP8_E5M2: _Format(8, "float8_e5m2"),
    ElementKind.S4: _Format(4),
    ElementKind.U4: _Format(4),
    ElementKind.BIN: _Format(1),
    ElementKind.COMPLEX32: _Format(64, "complex64", 5, "c8"),
    ElementKind.COMPLEX64: _Format(128, "complex128", 5, "c16"),
    ElementKind.U32: _Format(32, "uint32", 1, "u4"),
}
# Elements by their names and codes in other libraries. float32 is F32, never F32_STRICT.
BY_DTYPE_NAME = {}
BY_TYPESTR = {}  # without the byte order
BY_DLPACK = {}   # (type code, bits)
for _kind, _format in _FORMATS.items():
    if _format.dtype_name is not None:
        BY_DTYPE_NAME.setdefault(_format.dtype_name, _kind)
    if _format.typestr is not None:
        BY_TYPESTR.setdefault(_format.typestr, _kind)
    if _format.dlpack_code is not None:
        BY_DLPACK.setdefault((_format.dlpack_code, _format.bits), _kind)


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
    """Architecture of a kernel. It also runs on later GPUs, unless the name ends in A."""

    SM80 = 0
    SM89 = 1
    SM90A = 2
    HOST = 3


class BackendKind(_Named):
    """The library that the kernel is from."""

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
    """The operation of a matrix kernel on its accumulator before the store."""

    IDENTITY = 0
    BIAS = 1
    BIAS_RELU = 2
    BIAS_GELU = 3
    BIAS_SILU = 4


class SequenceLayout(_Named):
    """The global positions of a rank's L rows, on P ranks.

    ``CONTIGUOUS``: row ``i`` of rank ``r`` is at ``r*L + i``.
    ``ZIGZAG``: the sequence is cut into ``2P`` pieces, and rank ``r`` holds the pieces ``r`` and
    ``2P-1-r``. With a causal mask every rank then has the same work (if L is odd, nearly the same).
    ``STRIPED``: row ``i`` is at ``i*P + r`` (Brandon et al. 2023, arXiv:2311.09431).
    """

    CONTIGUOUS = 0
    ZIGZAG = 1
    STRIPED = 2
