# cython: language_level=3
"""The kernel families of attention: what each serves, promises, and why it would refuse."""

import dataclasses

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels.ops.attention cimport c_api as attention_api
from baracuda_kernels.ops.attention._descriptor cimport AttentionDescriptor

from baracuda_kernels._core._enums import (
    ArchSku,
    BackendKind,
    Direction,
    ElementKind,
    MathPrecision,
)
from baracuda_kernels._core._selection import Candidate
from baracuda_kernels._core._sku import KernelSku, PrecisionGuarantee
from baracuda_kernels.ops.attention._descriptor import accumulator_of

_ELEMENTS = (
    (ElementKind.F16, attention_api.BARACUDA_F16), (ElementKind.BF16, attention_api.BARACUDA_BF16),
    (ElementKind.F32, attention_api.BARACUDA_F32),
    (ElementKind.F32_STRICT, attention_api.BARACUDA_F32),
    (ElementKind.F64, attention_api.BARACUDA_F64),
)
_TENSOR_CORE = {ElementKind.F16: MathPrecision.F16, ElementKind.BF16: MathPrecision.BF16}


@dataclasses.dataclass(frozen=True)
class Family:
    """One kernel family. What it takes and needs is asked of C (``attention.h``).

    Attributes
    ----------
    kernel : int
        Its number in the C ABI.
    arch, backend : ArchSku, BackendKind
    name : str
    min_compute_capability, max_compute_capability : int
        Inclusive; 0 and 0 for the host.
    math : dict
        Operand element -> precision of the products.
    vector_bytes : int
        Alignment that operands' addresses and strides need; 0 for the element's own.
    forward_strides : bool
        Whether inputs must not run backwards in memory.
    has_backward : bool
        Whether it has kernels of the backward, too.
    ordered_backward : bool
        Whether every sum of those has a fixed order.
    """

    kernel: int
    arch: ArchSku
    backend: BackendKind
    name: str
    min_compute_capability: int
    max_compute_capability: int
    math: dict
    vector_bytes: int
    forward_strides: bool
    has_backward: bool
    ordered_backward: bool

    def guarantee(self, element, direction=Direction.FORWARD) -> PrecisionGuarantee:
        """F32 (F64 for F64) state. With a fixed order of every sum, as every forward has, bits
        repeat on the same card, world size and rank."""
        ordered = direction is Direction.FORWARD or self.ordered_backward
        return PrecisionGuarantee(self.math[element], accumulator_of(element), ordered, ordered)

    def sku(self, op, element, direction=Direction.FORWARD) -> KernelSku:
        return KernelSku(op.category, op, element, None, None, None, self.arch, self.backend,
                         self.guarantee(element, direction), direction)

    def layout_needs(self, itemsize):
        """Of the operands: bytes that addresses and elements that strides must be a multiple of,
        and whether inputs must not run backwards."""
        nbytes = max(self.vector_bytes, itemsize)
        return nbytes, nbytes // itemsize, self.forward_strides

    def refusal(self, descriptor, arch, preference, workspace_bytes,
                direction=Direction.FORWARD) -> str:
        """Why this family does not serve the problem there; empty if it does."""
        return (self._wrong_place(arch) or self._wrong_problem(descriptor, direction)
                or self._unwanted(descriptor, preference, workspace_bytes, direction))

    def _wrong_place(self, arch):
        capability = arch.compute_capability
        if arch.is_host:
            if self.arch is not ArchSku.HOST:
                return "needs a CUDA stream, the host was asked for"
        elif self.arch is ArchSku.HOST:
            return "runs on the host only, a GPU was asked for"
        elif capability < self.min_compute_capability:
            return (f"needs compute capability {self.min_compute_capability / 10} or later, "
                    f"{arch} was asked for")
        elif capability > self.max_compute_capability:
            return f"runs on compute capability {self.max_compute_capability / 10} alone"
        if not attention_api.baracuda_attention_available(self.kernel):
            return "is not in this build (made with BARACUDA_CUDA=OFF)"
        return ""

    def _wrong_problem(self, descriptor, direction):
        # C knows only the elements that some kernel takes.
        if descriptor.element not in self.math and (
                direction is Direction.FORWARD or self.has_backward):
            names = ", ".join(element.name for element in self.math)
            return f"element {descriptor.element.name} is not one of {names}"
        return _refusal(self.kernel, descriptor, direction)

    def _unwanted(self, descriptor, preference, workspace_bytes, direction):
        if self.arch is ArchSku.SM90A and not preference.allow_sm90a:
            return "allow_sm90a is False"
        if preference.prefer_backend not in (None, self.backend):
            return f"prefer_backend asks for {preference.prefer_backend}, this is {self.backend}"
        precision = self.math[descriptor.element]
        if preference.math_precision not in (None, precision):
            return f"math_precision asks for {preference.math_precision}, this uses {precision}"
        guarantee = self.guarantee(descriptor.element, direction)
        if preference.deterministic and not guarantee.deterministic:
            return "deterministic is True, and its sums have no fixed order"
        limit = preference.max_workspace_bytes
        if limit is not None and workspace_bytes > limit:
            return f"needs {workspace_bytes} workspace bytes, max_workspace_bytes is {limit}"
        return ""


def _family(int32_t kernel):
    """The family of a number in the C ABI; None where numbers end."""
    cdef attention_api.baracuda_attention_family info
    if attention_api.baracuda_attention_family_info(kernel, &info) != c_api.BARACUDA_OK:
        return None
    least, most = info.min_compute_capability, info.max_compute_capability
    arch = ArchSku.HOST if most == 0 else ArchSku[f"SM{least}A" if most == least else f"SM{least}"]
    backend = BackendKind.HOST if arch is ArchSku.HOST else BackendKind.BESPOKE
    math = {}
    for element, number in _ELEMENTS:
        if info.elements >> number & 1:
            strict = MathPrecision.F64 if element is ElementKind.F64 else MathPrecision.F32
            math[element] = _TENSOR_CORE[element] if info.tensor_cores else strict
    return Family(kernel, arch, backend, info.name.decode(), least, most, math, info.vector_bytes,
                  bool(info.forward_strides),
                  attention_api.baracuda_attention_backward_elements(kernel) != 0,
                  attention_api.baracuda_attention_backward_ordered(kernel) != 0)


def _all_families():
    found = []
    while (family := _family(len(found))) is not None:
        found.append(family)
    return tuple(reversed(found))


# In order of preference: the first that fits is taken. C numbers them in rising order of it.
FAMILIES = _all_families()


def skus(op, directions=(Direction.FORWARD,)):
    """Every (family, SKU) of an attention op's directions."""
    return [(family.name, family.sku(op, element, direction))
            for direction in directions for family in FAMILIES for element in family.math
            if direction is Direction.FORWARD or family.has_backward]


def candidates(op, descriptor, arch, preference, direction, several_steps):
    """Every family, with its SKU of the direction for the descriptor and its refusal.

    ``several_steps`` tells whether a call of the op may have several steps: what is kept between
    them is scratch.
    """
    descriptor.validate()
    found = []
    for family in FAMILIES:
        # A family that does not know the element is shown with the nearest SKU it has.
        element = descriptor.element if descriptor.element in family.math \
            else next(iter(family.math))
        if direction is Direction.BACKWARD:
            nbytes = backward_scratch_bytes(family, descriptor, several_steps)
        else:
            nbytes = _state_bytes(family.kernel, descriptor) if several_steps else 0
        reason = family.refusal(descriptor, arch, preference, nbytes, direction)
        found.append(Candidate(family.name, family.sku(op, element, direction), reason, family))
    return found


def backward_scratch_bytes(family, AttentionDescriptor descriptor, several_steps=False):
    """Bytes of a backward call of one step or several; 0 where the family has none in this build, or
    does not serve the problem."""
    cdef attention_api.baracuda_attention_step_params step
    cdef int32_t kernel = family.kernel
    if not (family.has_backward and attention_api.baracuda_attention_available(kernel)):
        return 0
    descriptor.fill(&step)
    if not several_steps:
        step.flags |= attention_api.BARACUDA_STEP_FIRST | attention_api.BARACUDA_STEP_LAST
    return max(attention_api.baracuda_attention_backward_scratch_bytes(kernel, &step), 0)


def _refusal(int32_t kernel, AttentionDescriptor descriptor, direction=Direction.FORWARD):
    cdef attention_api.baracuda_attention_step_params step
    cdef char reason[256]
    cdef int32_t status
    descriptor.fill(&step)
    if direction is Direction.BACKWARD:
        status = attention_api.baracuda_attention_backward_refusal(
            kernel, &step, reason, sizeof(reason))
    else:
        status = attention_api.baracuda_attention_refusal(kernel, &step, reason, sizeof(reason))
    return "" if status == c_api.BARACUDA_OK else (<bytes>reason).decode()


def _state_bytes(int32_t kernel, AttentionDescriptor descriptor):
    cdef attention_api.baracuda_attention_step_params step
    if not attention_api.baracuda_attention_available(kernel):
        return 0
    descriptor.fill(&step)
    return attention_api.baracuda_attention_state_bytes(kernel, &step)
