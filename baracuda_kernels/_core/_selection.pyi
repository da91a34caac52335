from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from baracuda_kernels._core._enums import ArchSku
from baracuda_kernels._core._sku import KernelSku, PlanPreference

@dataclass(frozen=True)
class Architecture:
    compute_capability: int
    @property
    def is_host(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @classmethod
    def parse(
        cls, value: Architecture | ArchSku | str | int | tuple[int, int] | None
    ) -> Architecture: ...
    @classmethod
    def here(cls) -> Architecture: ...
    @classmethod
    def of_device(cls, device: int) -> Architecture: ...

@dataclass(frozen=True)
class Candidate:
    family: str
    sku: KernelSku
    reason: str = ""
    @property
    def accepted(self) -> bool: ...
    def to_dict(self) -> dict[str, Any]: ...

@dataclass(frozen=True)
class Explanation:
    op: str
    arch: Architecture
    candidates: tuple[Candidate, ...]
    @property
    def chosen(self) -> Candidate | None: ...
    @property
    def selected(self) -> KernelSku | None: ...
    @property
    def family(self) -> str | None: ...
    def require(self) -> Candidate: ...
    def to_dict(self) -> dict[str, Any]: ...

@dataclass(frozen=True)
class OpSpec:
    name: str
    descriptor_type: type
    plan_type: type
    skus: Callable[[], Iterable[tuple[str, KernelSku]]]
    candidates: Callable[[Any, Architecture, PlanPreference], Iterable[Candidate]]
    def explain(
        self,
        descriptor: Any,
        arch: Architecture | ArchSku | str | int | tuple[int, int] | None = None,
        preference: PlanPreference | None = None,
    ) -> Explanation: ...
