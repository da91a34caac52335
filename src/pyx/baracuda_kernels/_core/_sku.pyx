# cython: language_level=3
"""The identity of a kernel, its guarantee, and a caller's preference."""

from collections.abc import Mapping

from baracuda_kernels._core._view cimport flag

from baracuda_kernels._core._enums import (
    ArchSku,
    BackendKind,
    Direction,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
    OpKind,
    kind_of,
)
from baracuda_kernels._core._errors import InvalidProblemError


cdef object _optional(str name, object enum, object value):
    return None if value is None else enum.parse(value, name)


cdef object _plain(object value):
    return value.name if hasattr(value, "name") else value


cdef class PrecisionGuarantee:
    """PrecisionGuarantee(math_precision, accumulator, bit_stable_on_same_hardware, deterministic)

    The precision and determinism that a kernel guarantees. Frozen, hashable, picklable.

    Parameters
    ----------
    math_precision : MathPrecision
        Precision of the multiplicands.
    accumulator : ElementKind
        Type of the sums of products, and of the ring's state.
    bit_stable_on_same_hardware : bool
        The same inputs give the same bits on the same card, world size and rank.
    deterministic : bool
        The order of every sum is fixed: no value depends on the timing of blocks or threads.

    Raises
    ------
    InvalidProblemError
        An unknown name, or a flag that is not a bool.
    """

    cdef readonly object math_precision
    cdef readonly object accumulator
    cdef readonly bint bit_stable_on_same_hardware
    cdef readonly bint deterministic

    def __cinit__(self, math_precision, accumulator, bit_stable_on_same_hardware, deterministic):
        self.math_precision = MathPrecision.parse(math_precision, "math_precision")
        self.accumulator = ElementKind.parse(accumulator, "accumulator")
        self.bit_stable_on_same_hardware = flag("bit_stable_on_same_hardware",
                                                 bit_stable_on_same_hardware)
        self.deterministic = flag("deterministic", deterministic)

    def _key(self):
        return (self.math_precision, self.accumulator, self.bit_stable_on_same_hardware,
                self.deterministic)

    def __eq__(self, other):
        if not isinstance(other, PrecisionGuarantee):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        return (f"PrecisionGuarantee(math_precision={self.math_precision}, "
                f"accumulator={self.accumulator}, "
                f"bit_stable_on_same_hardware={self.bit_stable_on_same_hardware}, "
                f"deterministic={self.deterministic})")

    def __reduce__(self):
        return PrecisionGuarantee, self._key()

    def to_dict(self):
        """Plain dict with enum names, for caches and telemetry; :meth:`from_dict` reads it."""
        return {
            "math_precision": self.math_precision.name,
            "accumulator": self.accumulator.name,
            "bit_stable_on_same_hardware": self.bit_stable_on_same_hardware,
            "deterministic": self.deterministic,
        }

    @classmethod
    def from_dict(cls, data):
        """Inverse of :meth:`to_dict`. Unknown keys in ``data`` are an
        :class:`InvalidProblemError`."""
        return cls(**_known(cls.__name__, data, GUARANTEE_FIELDS))


# Each field with the enum that parses it, or bool.
GUARANTEE_FIELDS = {
    "math_precision": MathPrecision, "accumulator": ElementKind,
    "bit_stable_on_same_hardware": bool, "deterministic": bool,
}
SKU_FIELDS = {
    "category": OpCategory, "op": OpKind, "element": ElementKind, "aux_element": ElementKind,
    "layout": LayoutSku, "epilogue": EpilogueKind, "arch": ArchSku, "backend": BackendKind,
    "precision_guarantee": PrecisionGuarantee, "direction": Direction,
}


cdef dict _known(str owner, object data, object fields, object optional=()):
    if not isinstance(data, Mapping):
        raise InvalidProblemError(
            f"{owner}.from_dict: got {type(data).__name__}, must be a dict")
    unknown = sorted(set(data) - set(fields), key=repr)
    missing = sorted(set(fields) - set(data) - set(optional))
    if unknown or missing:
        raise InvalidProblemError(
            f"{owner}.from_dict: unknown keys {unknown}, missing keys {missing}; "
            f"the keys are {list(fields)}")
    return dict(data)


cdef class KernelSku:
    """KernelSku(category, op, element, aux_element, layout, epilogue, arch, backend, \
precision_guarantee, direction=Direction.FORWARD)

    Identity of a kernel: its op, element types, architecture and guarantee.

    Frozen, hashable, picklable.

    Parameters
    ----------
    category : OpCategory
    op : OpKind or int
        Operation within the category (``u16`` in Rust): a name or number of the category's enum,
        such as :class:`AttentionKind`, or a number if it has no enum.
    element : ElementKind
        Operand element type.
    aux_element, layout, epilogue : optional
        Second element type, matrix layout and epilogue; None if the op has none.
    arch : ArchSku
    backend : BackendKind
    precision_guarantee : PrecisionGuarantee
    direction : Direction, optional
        ``FORWARD`` by default.

    Raises
    ------
    InvalidProblemError
        A name or number that the field's enum does not have.
    """

    cdef readonly object category
    cdef readonly object op
    cdef readonly object element
    cdef readonly object aux_element
    cdef readonly object layout
    cdef readonly object epilogue
    cdef readonly object arch
    cdef readonly object backend
    cdef readonly PrecisionGuarantee precision_guarantee
    cdef readonly object direction

    def __cinit__(self, category, op, element, aux_element, layout, epilogue, arch, backend,
                  precision_guarantee, direction=Direction.FORWARD):
        self.category = OpCategory.parse(category, "category")
        self.op = _op_of(self.category, op)
        self.element = ElementKind.parse(element, "element")
        self.aux_element = _optional("aux_element", ElementKind, aux_element)
        self.layout = _optional("layout", LayoutSku, layout)
        self.epilogue = _optional("epilogue", EpilogueKind, epilogue)
        self.arch = ArchSku.parse(arch, "arch")
        self.backend = BackendKind.parse(backend, "backend")
        if not isinstance(precision_guarantee, PrecisionGuarantee):
            raise InvalidProblemError(
                f"precision_guarantee: got {precision_guarantee!r}, must be a PrecisionGuarantee")
        self.precision_guarantee = precision_guarantee
        self.direction = Direction.parse(direction, "direction")

    def _key(self):
        return (self.category, self.op, self.element, self.aux_element, self.layout,
                self.epilogue, self.arch, self.backend, self.precision_guarantee, self.direction)

    def __eq__(self, other):
        if not isinstance(other, KernelSku):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        fields = ", ".join(f"{name}={getattr(self, name)}" for name in SKU_FIELDS)
        return f"KernelSku({fields})"

    def __reduce__(self):
        return KernelSku, self._key()

    def to_dict(self):
        """Plain dict with enum names, for caches and telemetry; :meth:`from_dict` reads it."""
        data = {name: _plain(getattr(self, name)) for name in SKU_FIELDS}
        data["precision_guarantee"] = self.precision_guarantee.to_dict()
        return data

    @classmethod
    def from_dict(cls, data):
        """Inverse of :meth:`to_dict`. Unknown keys in ``data`` are an :class:`InvalidProblemError`.

        A dict without a direction, from an earlier version, means a forward kernel.
        """
        fields = _known(cls.__name__, data, SKU_FIELDS, optional=("direction",))
        fields["precision_guarantee"] = PrecisionGuarantee.from_dict(fields["precision_guarantee"])
        return cls(**fields)


cdef object _op_of(object category, object op):
    kind = kind_of(category)
    if isinstance(op, int) and not isinstance(op, bool) and 0 <= op < 65536:
        try:
            return op if kind is None else kind(op)
        except ValueError:  # another package may have an op with this number
            return op
    if kind is not None:
        return kind.parse(op, "op")
    raise InvalidProblemError(
        f"op: got {op!r}, must be an integer in [0, 65535]: no names are known in {category}")


cdef class PlanPreference:
    """PlanPreference(max_workspace_bytes=None, allow_sm90a=True, prefer_backend=None, *, \
math_precision=None, deterministic=None)

    The conditions of a caller for the kernel that ``select`` picks. Frozen, hashable, picklable.

    If no kernel meets them, ``select`` raises :class:`UnsupportedError`. It never falls back
    silently. By default there is no condition.

    Parameters
    ----------
    max_workspace_bytes : int, optional
        Refuse kernels that need more scratch than this, in bytes: the forward's accumulator, the
        backward's ``scratch``. A ring's receive buffers are not counted: their size is the same for
        every kernel.
    allow_sm90a : bool, default True
        Whether Hopper-only kernels may be picked.
    prefer_backend : BackendKind, optional
        Only kernels of this backend.
    math_precision : MathPrecision, optional
        Only kernels that multiply in this precision.
    deterministic : bool, optional
        True: only kernels whose guarantee is deterministic. False and None: the fastest kernel.

    Raises
    ------
    InvalidProblemError
        A number of bytes below 0, an unknown name, or a flag that is not a bool.
    """

    cdef readonly object max_workspace_bytes
    cdef readonly bint allow_sm90a
    cdef readonly object prefer_backend
    cdef readonly object math_precision
    cdef readonly object deterministic

    def __cinit__(self, max_workspace_bytes=None, allow_sm90a=True, prefer_backend=None, *,
                  math_precision=None, deterministic=None):
        if max_workspace_bytes is not None:
            if not isinstance(max_workspace_bytes, int) or max_workspace_bytes < 0:
                raise InvalidProblemError(
                    f"max_workspace_bytes: got {max_workspace_bytes!r}, must be None or an "
                    "integer >= 0")
        self.max_workspace_bytes = max_workspace_bytes
        self.allow_sm90a = flag("allow_sm90a", allow_sm90a)
        self.prefer_backend = _optional("prefer_backend", BackendKind, prefer_backend)
        self.math_precision = _optional("math_precision", MathPrecision, math_precision)
        if deterministic is not None and not isinstance(deterministic, bool):
            raise InvalidProblemError(
                f"deterministic: got {deterministic!r}, must be None or a bool")
        self.deterministic = True if deterministic else None

    def _key(self):
        return (self.max_workspace_bytes, self.allow_sm90a, self.prefer_backend,
                self.math_precision, self.deterministic)

    def __eq__(self, other):
        if not isinstance(other, PlanPreference):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        return (f"PlanPreference(max_workspace_bytes={self.max_workspace_bytes}, "
                f"allow_sm90a={self.allow_sm90a}, prefer_backend={self.prefer_backend}, "
                f"math_precision={self.math_precision}, deterministic={self.deterministic})")

    def __reduce__(self):
        return _preference_from, self._key()


def _preference_from(max_workspace_bytes, allow_sm90a, prefer_backend, math_precision,
                     deterministic=None):
    return PlanPreference(max_workspace_bytes, allow_sm90a, prefer_backend,
                          math_precision=math_precision, deterministic=deterministic)
