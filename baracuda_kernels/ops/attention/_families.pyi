from dataclasses import dataclass
from typing import Any

from baracuda_kernels._core._architecture import Architecture
from baracuda_kernels._core._enums import (
    ArchSku,
    BackendKind,
    Direction,
    ElementKind,
    MathPrecision,
)
from baracuda_kernels._core._selection import Candidate
from baracuda_kernels._core._sku import KernelSku, PlanPreference, PrecisionGuarantee
from baracuda_kernels.ops.attention._kind import AttentionKind

@dataclass(frozen=True)
class Family:
    kernel: int
    arch: ArchSku
    backend: BackendKind
    name: str
    min_compute_capability: int
    max_compute_capability: int
    math: dict[ElementKind, MathPrecision]
    vector_bytes: int
    max_stride_bytes: int
    has_backward: bool
    ordered_backward: bool
    backward_kernel: int
    def guarantee(
        self, element: ElementKind, direction: Direction = ...
    ) -> PrecisionGuarantee: ...
    def sku(
        self, op: AttentionKind, element: ElementKind, direction: Direction = ...
    ) -> KernelSku: ...
    def layout_needs(self, itemsize: int) -> tuple[int, int, int]: ...
    def refusal(
        self,
        descriptor: Any,
        arch: Architecture,
        preference: PlanPreference,
        workspace_bytes: int,
        direction: Direction = ...,
    ) -> str: ...

FAMILIES: tuple[Family, ...]
OF_DIRECTION: dict[Direction, tuple[Family, ...]]

def skus(
    op: AttentionKind, directions: tuple[Direction, ...] = ...
) -> list[tuple[str, KernelSku]]: ...
def candidates(
    op: AttentionKind,
    descriptor: Any,
    arch: Architecture,
    preference: PlanPreference,
    direction: Direction,
    several_steps: bool,
) -> list[Candidate]: ...
def backward_scratch_bytes(
    family: Family, descriptor: Any, several_steps: bool = False
) -> int: ...
