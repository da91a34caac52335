from typing import NamedTuple, Self

from typing_extensions import disjoint_base

from baracuda_kernels._core._nccl_member import HopExchange

class RingStepTime(NamedTuple):
    step: int
    compute: float
    exchange: float
    exposed: float

class RingSpan(NamedTuple):
    step: int
    name: str
    begin: float
    end: float

@disjoint_base
class RingTimeline:
    def __new__(cls) -> Self: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def hops(self) -> tuple[HopExchange, ...]: ...
    @property
    def steps(self) -> list[RingStepTime]: ...
    @property
    def compute(self) -> float: ...
    @property
    def exchange(self) -> float: ...
    @property
    def exposed(self) -> float: ...
    @property
    def total(self) -> float: ...
    def spans(self, since: RingTimeline | None = None) -> list[RingSpan]: ...
