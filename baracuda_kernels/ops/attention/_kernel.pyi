from typing_extensions import disjoint_base

from baracuda_kernels._core._sku import KernelSku

@disjoint_base
class AttentionKernel:
    @property
    def sku(self) -> KernelSku: ...
    @property
    def family(self) -> str: ...
    @property
    def device(self) -> int: ...
