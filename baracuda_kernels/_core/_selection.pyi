from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from baracuda_kernels._core._architecture import Architecture
from baracuda_kernels._core._enums import ArchSku, Direction, ElementKind
from baracuda_kernels._core._sku import KernelSku, PlanPreference

@dataclass(frozen=True)
class Candidate:
    family: str
    sku: KernelSku
    reason: str = ""
    entry: Any = ...
    @property
    def accepted(self) -> bool: ...
    def to_dict(self) -> dict[str, Any]: ...

@dataclass(frozen=True)
class Explanation:
    op: str
    arch: Architecture
    candidates: tuple[Candidate, ...]
    direction: Direction = ...
    @property
    def chosen(self) -> Candidate | None: ...
    @property
    def selected(self) -> KernelSku | None: ...
    @property
    def family(self) -> str | None: ...
    def require(self) -> Candidate: ...
    def to_dict(self) -> dict[str, Any]: ...

@dataclass(frozen=True)
class ProblemOption:
    name: str
    type: type
    default: Any = None
    help: str = ""
    def __post_init__(self) -> None: ...

@dataclass(frozen=True)
class OpSpec:
    name: str
    descriptor_type: type
    plan_types: Mapping[Direction, type]
    skus: Callable[[], Iterable[tuple[str, KernelSku]]]
    candidates: Callable[[Any, Architecture, PlanPreference, Direction], Iterable[Candidate]]
    options: tuple[ProblemOption, ...] = ()
    describe: Callable[..., Any] | None = None
    def __post_init__(self) -> None: ...
    @classmethod
    def forward_only(
        cls,
        name: str,
        descriptor_type: type,
        plan_type: type,
        skus: Callable[[], Iterable[tuple[str, KernelSku]]],
        candidates: Callable[[Any, Architecture, PlanPreference], Iterable[Candidate]],
        **more: Any,
    ) -> OpSpec: ...
    @property
    def directions(self) -> tuple[Direction, ...]: ...
    @property
    def elements(self) -> tuple[ElementKind, ...]: ...
    @property
    def dtypes(self) -> dict[str, ElementKind]: ...
    def plan_type(self, direction: Direction | str = ...) -> type: ...
    def explain(
        self,
        descriptor: Any,
        arch: Architecture | ArchSku | str | int | tuple[int, int] | None = None,
        preference: PlanPreference | None = None,
        direction: Direction | str = ...,
    ) -> Explanation: ...
    def problem(self, **values: Any) -> Any: ...
