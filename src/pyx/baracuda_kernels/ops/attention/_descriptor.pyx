# cython: language_level=3
"""The attention problem as data: the base of every attention op's descriptor."""

import math
from collections.abc import Mapping

from libc.string cimport memset

from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels._core._view cimport flag, index_of

from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels._core._errors import InvalidProblemError

_C_ELEMENTS = {
    ElementKind.F16: attention_api.BARACUDA_F16,
    ElementKind.BF16: attention_api.BARACUDA_BF16,
    ElementKind.F32: attention_api.BARACUDA_F32,
    ElementKind.F32_STRICT: attention_api.BARACUDA_F32,
    ElementKind.F64: attention_api.BARACUDA_F64,
}
_FIELDS = ("batch_size", "num_heads", "query_len", "key_len", "head_dim", "scale", "is_causal",
           "element")
# Element counts and byte counts must fit in 63 bits.
_MAX_ELEMENTS = 2 ** 59


def accumulator_of(element):
    """The type of sums, of the state between steps and, by default, of lse."""
    return ElementKind.F64 if element is ElementKind.F64 else ElementKind.F32


cdef class AttentionDescriptor:
    """Base of the attention descriptors. Frozen, hashable, picklable. Only subclasses are made."""

    def __cinit__(self, batch_size, num_heads, query_len, key_len, head_dim, scale=None,
                  is_causal=False, element=ElementKind.F32, *, num_kv_heads=None, **kwargs):
        self.batch_size = _extent("batch_size", batch_size)
        self.num_heads = _extent("num_heads", num_heads)
        self.query_len = _extent("query_len", query_len)
        self.key_len = _extent("key_len", key_len)
        self.head_dim = _extent("head_dim", head_dim)
        self.num_kv_heads = (self.num_heads if num_kv_heads is None
                             else _extent("num_kv_heads", num_kv_heads))
        if scale is None:
            self.scale = 1.0 / math.sqrt(self.head_dim) if self.head_dim > 0 else 1.0
        elif isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise InvalidProblemError(f"scale: got {scale!r}, must be None or a float")
        else:
            self.scale = _number(scale)
        self.is_causal = flag("is_causal", is_causal)
        self.element = ElementKind.parse(element, "element")
        self.c_element = _C_ELEMENTS.get(self.element, -1)
        self.itemsize = self.element.itemsize

    def validate(self):
        """Raise :class:`InvalidProblemError` if the problem is invalid.

        ``select`` and ``explain`` call it. Extents must be at least 0 (heads at least 1), operands
        must fit in the address space, the scale must be finite, and ``num_heads`` must be a
        multiple of ``num_kv_heads``.
        """
        for name, least in (("batch_size", 0), ("num_heads", 1), ("query_len", 0), ("key_len", 0),
                            ("head_dim", 0), ("num_kv_heads", 1)):
            if getattr(self, name) < least:
                raise InvalidProblemError(
                    f"{name}: got {getattr(self, name)}, must be >= {least}")
        if not math.isfinite(self.scale):
            raise InvalidProblemError(f"scale: got {self.scale}, must be finite")
        heads, kv_heads = int(self.num_heads), int(self.num_kv_heads)
        if heads % kv_heads:
            raise InvalidProblemError(
                f"num_kv_heads: got {kv_heads}, must divide num_heads = {heads}")
        for length, count in ((self.query_len, heads), (self.key_len, kv_heads)):
            if int(self.batch_size) * count * int(length) * max(int(self.head_dim) + 2, 1) \
                    > _MAX_ELEMENTS:
                raise InvalidProblemError(
                    f"descriptor: got {self!r}, must have at most 2**59 elements in an operand")

    cdef void fill(self, baracuda_attention_step_params* step) noexcept:
        memset(step, 0, sizeof(step[0]))
        step.struct_size = sizeof(step[0])
        step.element = self.c_element
        step.lse_element = attention_api.BARACUDA_F32
        step.flags = attention_api.BARACUDA_STEP_CAUSAL if self.is_causal else 0
        step.batch = self.batch_size
        step.heads = self.num_heads
        step.kv_heads = self.num_kv_heads
        step.query_len = self.query_len
        step.key_len = self.key_len
        step.head_dim = self.head_dim
        step.scale = self.scale
        step.q_map.stride = step.k_map.stride = 1
        step.q_map.split = self.query_len
        step.k_map.split = self.key_len

    def _extra(self):
        return {}

    def _fields(self):
        fields = {name: getattr(self, name) for name in _FIELDS}
        fields["num_kv_heads"] = self.num_kv_heads
        fields.update(self._extra())
        return fields

    def _key(self):
        return tuple(self._fields().values())

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self):
        return hash((type(self).__name__, self._key()))

    def __repr__(self):
        fields = ", ".join(f"{name}={value}" for name, value in self._fields().items())
        return f"{type(self).__name__}({fields})"

    def __reduce__(self):
        return _rebuild, (type(self), self._fields())

    def to_dict(self):
        """Plain dict with enum names, for caches and telemetry; :meth:`from_dict` reads it."""
        return {name: getattr(value, "name", value) for name, value in self._fields().items()}

    @classmethod
    def from_dict(cls, data):
        """Inverse of :meth:`to_dict`. An unknown key is an :class:`InvalidProblemError`."""
        if not isinstance(data, Mapping):
            raise InvalidProblemError(
                f"{cls.__name__}.from_dict: got {type(data).__name__}, must be a dict")
        try:
            return cls(**data)
        except TypeError as error:
            raise InvalidProblemError(f"{cls.__name__}.from_dict: {error}") from error


def _rebuild(cls, fields):
    return cls(**fields)


cdef double _number(object scale) except? -1:
    try:
        return scale
    except OverflowError:
        raise InvalidProblemError(
            "scale: got an integer beyond all floats, must be finite") from None


cdef int64_t _extent(str name, object value) except? -1:
    value = index_of(name, value)
    if value < -(2 ** 62) or value > 2 ** 62:
        raise InvalidProblemError(f"{name}: got {value}, must be an integer below 2**62")
    return value
