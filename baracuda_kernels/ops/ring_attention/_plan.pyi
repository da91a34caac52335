from typing import Any, overload

from typing_extensions import disjoint_base

from baracuda_kernels._core._selection import OpSpec
from baracuda_kernels._core._sku import PlanPreference
from baracuda_kernels._core._timeline import RingTimeline
from baracuda_kernels.ops.ring_attention._args import RingAttentionArgs
from baracuda_kernels.ops.ring_attention._base import RingAttentionBase
from baracuda_kernels.ops.ring_attention._descriptor import RingAttentionDescriptor

@disjoint_base
class RingAttentionPlan(RingAttentionBase):
    @overload
    @staticmethod
    def select(
        descriptor: RingAttentionDescriptor, stream: Any, preference: PlanPreference | None = None
    ) -> RingAttentionPlan: ...
    @overload
    @staticmethod
    def select(
        descriptor: Any, stream: RingAttentionDescriptor, preference: PlanPreference | None = None
    ) -> RingAttentionPlan: ...
    @property
    def accumulator_scratch_bytes(self) -> int: ...
    def can_implement(
        self, args: RingAttentionArgs, world_size: int | None = None, *, comm: Any = None
    ) -> None: ...
    def validate(self, comm: Any, args: RingAttentionArgs | None = None) -> None: ...
    def run(
        self,
        stream: Any,
        comm: Any,
        args: RingAttentionArgs,
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
        y: Any = None,
        lse: Any = None,
        accumulator_scratch: Any = None,
        rank: int = 0,
        origin: int = 0,
        world_size: int = 1,
        first: bool = True,
        last: bool = True,
        follows: bool = False,
    ) -> None: ...

SPEC: OpSpec
