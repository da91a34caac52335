from typing import Any, Self, overload

from typing_extensions import disjoint_base

from baracuda_kernels._core._ring_plan import RingArgs
from baracuda_kernels._core._sku import PlanPreference
from baracuda_kernels._core._tensor import TensorRef
from baracuda_kernels._core._timeline import RingTimeline
from baracuda_kernels.ops.ring_attention._base import RingAttentionBase
from baracuda_kernels.ops.ring_attention._descriptor import RingAttentionDescriptor

@disjoint_base
class RingAttentionBackwardArgs(RingArgs):
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
        kv_scratch_a: Any = None,
        kv_scratch_b: Any = None,
        kv_gradient_scratch: Any = None,
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
    def dq(self) -> TensorRef: ...
    @property
    def dk(self) -> TensorRef: ...
    @property
    def dv(self) -> TensorRef: ...
    @property
    def dlse(self) -> TensorRef | None: ...
    @property
    def scratch(self) -> TensorRef | None: ...
    @property
    def kv_scratch_a(self) -> TensorRef | None: ...
    @property
    def kv_scratch_b(self) -> TensorRef | None: ...
    @property
    def kv_gradient_scratch(self) -> TensorRef | None: ...

@disjoint_base
class RingAttentionBackwardPlan(RingAttentionBase):
    @overload
    @staticmethod
    def select(
        descriptor: RingAttentionDescriptor, stream: Any, preference: PlanPreference | None = None
    ) -> RingAttentionBackwardPlan: ...
    @overload
    @staticmethod
    def select(
        descriptor: Any, stream: RingAttentionDescriptor, preference: PlanPreference | None = None
    ) -> RingAttentionBackwardPlan: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def kv_gradient_scratch_bytes(self) -> int: ...
    def least_kv_gradient_scratch_bytes(self, with_kv_scratch_b: bool = False) -> int: ...
    @property
    def needs_kv_scratch_b(self) -> bool: ...
    def can_implement(
        self, args: RingAttentionBackwardArgs, world_size: int | None = None, *, comm: Any = None
    ) -> None: ...
    def validate(self, comm: Any, args: RingAttentionBackwardArgs | None = None) -> None: ...
    def run(
        self,
        stream: Any,
        comm: Any,
        args: RingAttentionBackwardArgs,
        *,
        timeline: RingTimeline | None = None,
    ) -> None: ...
    def step(
        self,
        stream: Any,
        *,
        q: Any,
        k: Any,
        v: Any,
        dy: Any,
        dk: Any,
        dv: Any,
        y: Any = None,
        lse: Any = None,
        dlse: Any = None,
        dq: Any = None,
        scratch: Any = None,
        rank: int = 0,
        origin: int = 0,
        world_size: int = 1,
        first: bool = True,
        last: bool = True,
    ) -> None: ...
