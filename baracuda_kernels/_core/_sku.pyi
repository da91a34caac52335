from collections.abc import Mapping
from typing import Any, Literal, Self

from typing_extensions import disjoint_base

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
)

GUARANTEE_FIELDS: dict[str, type]
SKU_FIELDS: dict[str, type]

@disjoint_base
class PrecisionGuarantee:
    @property
    def math_precision(self) -> MathPrecision: ...
    @property
    def accumulator(self) -> ElementKind: ...
    @property
    def bit_stable_on_same_hardware(self) -> bool: ...
    @property
    def deterministic(self) -> bool: ...
    def __new__(
        cls,
        math_precision: MathPrecision | str,
        accumulator: ElementKind | str,
        bit_stable_on_same_hardware: bool,
        deterministic: bool,
    ) -> Self: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...
    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self: ...

@disjoint_base
class KernelSku:
    @property
    def category(self) -> OpCategory: ...
    @property
    def op(self) -> OpKind | int: ...
    @property
    def element(self) -> ElementKind: ...
    @property
    def aux_element(self) -> ElementKind | None: ...
    @property
    def layout(self) -> LayoutSku | None: ...
    @property
    def epilogue(self) -> EpilogueKind | None: ...
    @property
    def arch(self) -> ArchSku: ...
    @property
    def backend(self) -> BackendKind: ...
    @property
    def precision_guarantee(self) -> PrecisionGuarantee: ...
    @property
    def direction(self) -> Direction: ...
    def __new__(
        cls,
        category: OpCategory | str,
        op: OpKind | str | int,
        element: ElementKind | str,
        aux_element: ElementKind | str | None,
        layout: LayoutSku | str | None,
        epilogue: EpilogueKind | str | None,
        arch: ArchSku | str,
        backend: BackendKind | str,
        precision_guarantee: PrecisionGuarantee,
        direction: Direction | str = Direction.FORWARD,
    ) -> Self: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...
    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self: ...

@disjoint_base
class PlanPreference:
    @property
    def max_workspace_bytes(self) -> int | None: ...
    @property
    def allow_sm90a(self) -> bool: ...
    @property
    def prefer_backend(self) -> BackendKind | None: ...
    @property
    def math_precision(self) -> MathPrecision | None: ...
    @property
    def deterministic(self) -> Literal[True] | None: ...
    def __new__(
        cls,
        max_workspace_bytes: int | None = None,
        allow_sm90a: bool = True,
        prefer_backend: BackendKind | str | None = None,
        *,
        math_precision: MathPrecision | str | None = None,
        deterministic: bool | None = None,
    ) -> Self: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
