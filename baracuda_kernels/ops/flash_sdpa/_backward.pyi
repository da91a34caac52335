from typing import Any, Self, overload

from typing_extensions import disjoint_base

from baracuda_kernels._core._plan import KernelPlan
from baracuda_kernels._core._sku import PlanPreference
from baracuda_kernels._core._tensor import TensorRef
from baracuda_kernels.ops.flash_sdpa._descriptor import FlashSdpaDescriptor

@disjoint_base
class FlashSdpaBackwardArgs:
    def __new__(
        cls,
        *,
        q: Any,
        k: Any,
        v: Any,
        y: Any,
        dy: Any,
        lse: Any,
        dq: Any,
        dk: Any,
        dv: Any,
        scratch: Any = None,
        dlse: Any = None,
    ) -> Self: ...
    @property
    def q(self) -> TensorRef: ...
    @property
    def k(self) -> TensorRef: ...
    @property
    def v(self) -> TensorRef: ...
    @property
    def y(self) -> TensorRef: ...
    @property
    def dy(self) -> TensorRef: ...
    @property
    def lse(self) -> TensorRef: ...
    @property
    def dlse(self) -> TensorRef | None: ...
    @property
    def dq(self) -> TensorRef: ...
    @property
    def dk(self) -> TensorRef: ...
    @property
    def dv(self) -> TensorRef: ...
    @property
    def scratch(self) -> TensorRef | None: ...

@disjoint_base
class FlashSdpaBackwardPlan(KernelPlan):
    @overload
    @staticmethod
    def select(
        descriptor: FlashSdpaDescriptor, stream: Any, preference: PlanPreference | None = None
    ) -> FlashSdpaBackwardPlan: ...
    @overload
    @staticmethod
    def select(
        descriptor: Any, stream: FlashSdpaDescriptor, preference: PlanPreference | None = None
    ) -> FlashSdpaBackwardPlan: ...
    @property
    def descriptor(self) -> FlashSdpaDescriptor: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def scratch_alignment(self) -> int: ...
    def can_implement(self, args: FlashSdpaBackwardArgs) -> None: ...
    def run(self, stream: Any, args: FlashSdpaBackwardArgs) -> None: ...
