from typing import Any

from typing_extensions import disjoint_base

from baracuda_kernels._core._ring_plan import RingPlan
from baracuda_kernels.ops.ring_attention._descriptor import RingAttentionDescriptor

@disjoint_base
class RingAttentionBase(RingPlan):
    @property
    def descriptor(self) -> RingAttentionDescriptor: ...
    @property
    def kv_scratch_elements(self) -> int: ...
    @property
    def scratch_alignment(self) -> int: ...
    def validate(self, comm: Any, args: Any = None) -> None: ...
