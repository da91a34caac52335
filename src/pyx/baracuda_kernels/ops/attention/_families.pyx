# cython: language_level=3
"""The kernel families of attention: the problems that each serves, its guarantee, its refusals."""

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
    """A kernel family. Its facts come from C (``attention.h``).

    A family with two backwards has two objects; the second has its own name.

    Attributes
    ----------
    kernel : int
        The number of its forward in the C ABI.
    arch, backend : ArchSku, BackendKind
    name : str
    min_compute_capability, max_compute_capability : int
        Inclusive; 0 and 0 for the host.
    math : dict
        Operand element -> precision of the products.
    vector_bytes : int
        Alignment of operands' addresses and strides in bytes; 0: that of the element.
    max_stride_bytes : int
        Strides of inputs must be from 0 to below this number of bytes; 0: any strides.
    has_backward : bool
        Whether the family has backward kernels.
    ordered_backward : bool
        Whether every sum of the backward has a fixed order.
    backward_kernel : int
        The number of its backward in the C ABI.
    """

    kernel: int
    arch: ArchSku
    backend: BackendKind
    name: str
    min_compute_capability: int
    max_compute_capability: int
    math: dict
    vector_bytes: int
    max_stride_bytes: int
    has_backward: bool
    ordered_backward: bool
    backward_kernel: int

    def guarantee(self, element, direction=Direction.FORWARD) -> PrecisionGuarantee:
        """The guarantee for an element and a direction. If every sum has a fixed order, as in every
        forward, the bits are the same on the same card, world size and rank."""
        ordered = direction is Direction.FORWARD or self.ordered_backward
        return PrecisionGuarantee(self.math[element], accumulator_of(element), ordered, ordered)

    def sku(self, op, element, direction=Direction.FORWARD) -> KernelSku:
        return KernelSku(op.category, op, element, None, None, None, self.arch, self.backend,
                         self.guarantee(element, direction), direction)

    def layout_needs(self, itemsize):
        """The alignment of addresses in bytes, that of strides in elements, and the bound that
        strides of inputs must be below, in elements (0: any strides)."""
        nbytes = max(self.vector_bytes, itemsize)
        return nbytes, nbytes // itemsize, self.max_stride_bytes // itemsize

    def refusal(self, descriptor, arch, preference, workspace_bytes,
                direction=Direction.FORWARD) -> str:
        """Why this family does not serve the problem on `arch`; empty if it does."""
        return (self._wrong_place(arch) or self._wrong_problem(descriptor, direction)
                or self._unwanted(descriptor, preference, workspace_bytes, direction))

    def _wrong_place(self, arch):
        capability = arch.compute_capability
        if arch.is_host:
            if self.arch is not ArchSku.HOST:
                return "arch: got host, must be a GPU"
        elif self.arch is ArchSku.HOST:
            return f"arch: got {arch}, must be host"
        elif capability < self.min_compute_capability:
            later = "" if self.max_compute_capability == self.min_compute_capability else " or later"
            return f"arch: got {arch}, must be sm_{self.min_compute_capability}{later}"
        elif capability > self.max_compute_capability:
            return f"arch: got {arch}, must be sm_{self.max_compute_capability}"
        if not attention_api.baracuda_attention_available(self.kernel):
            return "the kernel is not in this build (made with BARACUDA_CUDA=OFF)"
        return ""

    def _wrong_problem(self, descriptor, direction):
        # C knows only elements that some kernel takes.
        if descriptor.element not in self.math and (
                direction is Direction.FORWARD or self.has_backward):
            names = ", ".join(element.name for element in self.math)
            return f"element: got {descriptor.element.name}, must be one of {names}"
        kernel = self.kernel if direction is Direction.FORWARD else self.backward_kernel
        return _refusal(kernel, descriptor, direction)

    def _unwanted(self, descriptor, preference, workspace_bytes, direction):
        if self.arch is ArchSku.SM90A and not preference.allow_sm90a:
            return "allow_sm90a: got False, must be True"
        if preference.prefer_backend not in (None, self.backend):
            return f"prefer_backend: got {preference.prefer_backend}, must be {self.backend}"
        precision = self.math[descriptor.element]
        if preference.math_precision not in (None, precision):
            return f"math_precision: got {preference.math_precision}, must be {precision}"
        guarantee = self.guarantee(descriptor.element, direction)
        if preference.deterministic and not guarantee.deterministic:
            return "deterministic: got True, must be None: the kernel's sums have no fixed order"
        limit = preference.max_workspace_bytes
        if limit is not None and workspace_bytes > limit:
            return f"max_workspace_bytes: got {limit}, must be at least {workspace_bytes}"
        return ""


def _family(int32_t kernel):
    """The family with a number of the C ABI; None after the last one."""
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
                  info.max_stride_bytes,
                  attention_api.baracuda_attention_backward_elements(kernel) != 0,
                  attention_api.baracuda_attention_backward_ordered(kernel) != 0, kernel)


def _all_families():
    found = []
    while (family := _family(len(found))) is not None:
        found.append(family)
    return tuple(reversed(found))


# In order of preference: the first family that fits is taken. C numbers them in the reverse order.
FAMILIES = _all_families()


def _second_backward(family):
    """The family with its other backward, whose sums have a fixed order; None without one."""
    cdef int32_t kernel = attention_api.baracuda_attention_backward_second(family.kernel)
    if kernel < 0:
        return None
    return dataclasses.replace(
        family, name=f"{family.name}-deterministic", backward_kernel=kernel,
        ordered_backward=attention_api.baracuda_attention_backward_ordered(kernel) != 0)


OF_DIRECTION = {
    Direction.FORWARD: FAMILIES,
    # The second backward of a family is slower, so it comes after the first.
    Direction.BACKWARD: tuple(one for family in FAMILIES
                              for one in (family, _second_backward(family)) if one is not None),
}


def skus(op, directions=(Direction.FORWARD,)):
    """Every (family, SKU) of an attention op's directions."""
    return [(family.name, family.sku(op, element, direction))
            for direction in directions for family in OF_DIRECTION[direction] for element in family.math
            if direction is Direction.FORWARD or family.has_backward]


def candidates(op, descriptor, arch, preference, direction, several_steps):
    """A candidate for every family of the direction.

    ``several_steps``: whether a call of the op may have several steps. These need scratch for the
    state.
    """
    descriptor.validate()
    found = []
    for family in OF_DIRECTION[direction]:
        # A family that does not take the element is shown with its first SKU.
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
    """Bytes of scratch of a backward call with one step or several. 0 if this build has no backward
    of the family, or the family does not serve the problem."""
    cdef attention_api.baracuda_attention_step_params step
    cdef int32_t kernel = family.backward_kernel
    if not (family.has_backward and attention_api.baracuda_attention_available(family.kernel)):
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
