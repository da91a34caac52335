from typing import Any, Self

from typing_extensions import disjoint_base

from baracuda_kernels._core._enums import ElementKind

@disjoint_base
class OperandChecks:
    def __new__(cls, element: ElementKind, device: int, alignment: int, *more: Any) -> Self: ...
