from typing import Any

from typing_extensions import disjoint_base

from baracuda_kernels._core._sku import KernelSku, PrecisionGuarantee

@disjoint_base
class KernelPlan:
    @property
    def descriptor(self) -> Any: ...
    @property
    def sku(self) -> KernelSku: ...
    @property
    def family(self) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def precision_guarantee(self) -> PrecisionGuarantee: ...
