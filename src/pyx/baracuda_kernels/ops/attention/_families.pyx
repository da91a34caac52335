# cython: language_level=3
"""The kernel families of attention: what each serves, promises, and why it would refuse."""

import dataclasses

from baracuda_kernels._core cimport c_api
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

_STRICT = {
    ElementKind.F16: MathPrecision.F32, ElementKind.BF16: MathPrecision.F32,
    ElementKind.F32: MathPrecision.F32, ElementKind.F32_STRICT: MathPrecision.F32,
    ElementKind.F64: MathPrecision.F64,
}
_TENSOR_CORE = {ElementKind.F16: MathPrecision.F16, ElementKind.BF16: MathPrecision.BF16}


@dataclasses.dataclass(frozen=True)
class Family:
    """One kernel family.

    Attributes
    ----------
    name : str
    kernel : int
        Its number in the C ABI.
    arch, backend : ArchSku, BackendKind
    min_compute_capability, max_compute_capability : int
        Inclusive; 0 and 0 for the host.
    math : dict
        Operand element -> precision of the products.
    head_dims : tuple of int, or range
    positive_scale : bool
        Whether it keeps unscaled maxima, which needs scale > 0.
    vector_bytes : int
        Alignment that operands' addresses and strides need; 0 for the element's own.
    forward_strides : bool
        Whether inputs must not run backwards in memory.
    """

    name: str
    kernel: int
    arch: ArchSku
    backend: BackendKind
    min_compute_capability: int
    max_compute_capability: int
    math: dict
    head_dims: object
    positive_scale: bool
    vector_bytes: int
    forward_strides: bool

    def guarantee(self, element) -> PrecisionGuarantee:
        """Fixed order of every sum and f32 (f64 for F64) state: bits repeat on the same card,
        world size and rank."""
        return PrecisionGuarantee(self.math[element], accumulator_of(element), True, True)

    def sku(self, op, element) -> KernelSku:
        return KernelSku(op.category, op, element, None, None, None, self.arch, self.backend,
                         self.guarantee(element), Direction.FORWARD)

    def layout_needs(self, itemsize):
        """Of the operands: bytes that addresses and elements that strides must be a multiple of,
        and whether inputs must not run backwards."""
        nbytes = max(self.vector_bytes, itemsize)
        return nbytes, nbytes // itemsize, self.forward_strides

    def refusal(self, descriptor, arch, preference, workspace_bytes) -> str:
        """Why this family does not serve the problem there; empty if it does."""
        return (self._wrong_place(arch) or self._wrong_problem(descriptor)
                or self._unwanted(descriptor, preference, workspace_bytes))

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
        if not c_api.baracuda_attention_available(self.kernel):
            return "is not in this build (made with BARACUDA_CUDA=OFF)"
        return ""

    def _wrong_problem(self, descriptor):
        if descriptor.element not in self.math:
            names = ", ".join(element.name for element in self.math)
            return f"element {descriptor.element.name} is not one of {names}"
        if descriptor.head_dim not in self.head_dims:
            dims = (f"{self.head_dims.start} to {self.head_dims.stop - 1}"
                    if isinstance(self.head_dims, range)
                    else " or ".join(map(str, self.head_dims)))
            return f"head_dim {descriptor.head_dim} is not {dims}"
        if self.positive_scale and not descriptor.scale > 0:
            return f"scale {descriptor.scale} is not > 0, which its unscaled row maxima need"
        if self.positive_scale and not _NORMAL_F32[0] < descriptor.scale < _NORMAL_F32[1]:
            return f"scale {descriptor.scale} is beyond float32, in which it scales"
        if self.vector_bytes and max(descriptor.query_len, descriptor.key_len) > _MAX_LENGTH:
            return "query_len or key_len is more than 2**30 rows a step"
        tiles = int(descriptor.batch_size) * descriptor.num_heads * (descriptor.query_len // 64 + 1)
        if self.arch is ArchSku.SM90A and tiles > _MAX_TILES:
            return f"{tiles} query tiles are more than it counts in 32 bits"
        return ""

    def _unwanted(self, descriptor, preference, workspace_bytes):
        if self.arch is ArchSku.SM90A and not preference.allow_sm90a:
            return "allow_sm90a is False"
        if preference.prefer_backend not in (None, self.backend):
            return f"prefer_backend asks for {preference.prefer_backend}, this is {self.backend}"
        precision = self.math[descriptor.element]
        if preference.math_precision not in (None, precision):
            return f"math_precision asks for {preference.math_precision}, this uses {precision}"
        limit = preference.max_workspace_bytes
        if limit is not None and workspace_bytes > limit:
            return f"needs {workspace_bytes} workspace bytes, max_workspace_bytes is {limit}"
        return ""


# Of scale, with room for the factor log2(e) that kernels take in.
_NORMAL_F32 = (2.0 ** -125, 2.0 ** 126)
_MAX_LENGTH = 2 ** 30
_MAX_TILES = 2 ** 31 - 2 ** 12

# In order of preference: the first that fits is taken.
FAMILIES = (
    Family("sm90a", c_api.BARACUDA_ATTENTION_SM90A, ArchSku.SM90A, BackendKind.BESPOKE, 90, 90,
           _TENSOR_CORE, (64, 128, 256), True, 16, True),
    Family("sm80", c_api.BARACUDA_ATTENTION_SM80, ArchSku.SM80, BackendKind.BESPOKE, 80, 999,
           _TENSOR_CORE, (64, 96, 128, 192, 256), True, 16, False),
    Family("simt", c_api.BARACUDA_ATTENTION_SIMT, ArchSku.SM80, BackendKind.BESPOKE, 80, 999,
           _STRICT, range(1, 257), False, 0, False),
    Family("host", c_api.BARACUDA_ATTENTION_HOST, ArchSku.HOST, BackendKind.HOST, 0, 0,
           _STRICT, range(1, 1025), False, 0, False),
)


def skus(op):
    """Every (family, SKU) of an attention op's forward."""
    return [(family.name, family.sku(op, element))
            for family in FAMILIES for element in family.math]


def candidates(op, descriptor, arch, preference, direction, workspace):
    """Every family of the direction, with its SKU for the descriptor and its refusal.

    ``workspace`` tells whether the op needs the family's state as scratch.
    """
    descriptor.validate()
    found = []
    for family in FAMILIES:
        # A family that does not know the element is shown with the nearest SKU it has.
        element = descriptor.element if descriptor.element in family.math \
            else next(iter(family.math))
        nbytes = _state_bytes(family.kernel, descriptor) if workspace else 0
        reason = family.refusal(descriptor, arch, preference, nbytes)
        found.append(Candidate(family.name, family.sku(op, element), reason, family))
    return found


def _state_bytes(int kernel, AttentionDescriptor descriptor):
    cdef c_api.baracuda_attention_step_params step
    if not c_api.baracuda_attention_available(kernel):
        return 0
    descriptor.fill(&step)
    return c_api.baracuda_attention_state_bytes(kernel, &step)
