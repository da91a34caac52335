from typing import Any, Self, overload

from typing_extensions import disjoint_base

from baracuda_kernels._core._plan import KernelPlan
from baracuda_kernels._core._selection import OpSpec
from baracuda_kernels._core._sku import PlanPreference
from baracuda_kernels._core._tensor import TensorRef
from baracuda_kernels.ops.flash_sdpa._descriptor import FlashSdpaDescriptor

@disjoint_base
class FlashSdpaArgs:
    def __new__(cls, *, q: Any, k: Any, v: Any, y: Any, lse: Any = None) -> Self: ...
    @property
    def q(self) -> TensorRef: ...
    @property
    def k(self) -> TensorRef: ...
    @property
    def v(self) -> TensorRef: ...
    @property
    def y(self) -> TensorRef: ...
    @property
    def lse(self) -> TensorRef | None: ...

@disjoint_base
class FlashSdpaPlan(KernelPlan):
    @overload
    @staticmethod
    def select(
        descriptor: FlashSdpaDescriptor, stream: Any, preference: PlanPreference | None = None
    ) -> FlashSdpaPlan: ...
    @overload
    @staticmethod
    def select(
        descriptor: Any, stream: FlashSdpaDescriptor, preference: PlanPreference | None = None
    ) -> FlashSdpaPlan: ...
    @property
    def descriptor(self) -> FlashSdpaDescriptor: ...
    def can_implement(self, args: FlashSdpaArgs) -> None: ...
    def run(self, stream: Any, args: FlashSdpaArgs) -> None: ...

SPEC: OpSpec
