from typing import Any, Self

from typing_extensions import disjoint_base

from baracuda_kernels._core._plan import KernelPlan
from baracuda_kernels._core._timeline import RingTimeline

@disjoint_base
class RingArgs:
    def __new__(cls) -> Self: ...

class RingPlan(KernelPlan):
    def can_implement(
        self, args: Any, world_size: int | None = None, *, comm: Any = None
    ) -> None: ...
    def run(
        self, stream: Any, comm: Any, args: Any, *, timeline: RingTimeline | None = None
    ) -> None: ...
