from dataclasses import dataclass

from baracuda_kernels._core._enums import ArchSku

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
