from collections.abc import Iterator, Sequence
from typing import Any, Self

from typing_extensions import disjoint_base

from baracuda_kernels._core._member import RingMember
from baracuda_kernels._core._ring_plan import RingPlan
from baracuda_kernels._core._timeline import RingTimeline

@disjoint_base
class LocalCommunicator(RingMember):
    @staticmethod
    def ring(
        world_size: int, *, device: str | int | Sequence[int] = "host", timeout: float = 60.0
    ) -> LocalRing: ...
    def abort(self) -> None: ...

@disjoint_base
class LocalRing:
    def __new__(
        cls, world_size: int, device: str | int | Sequence[int] = "host", timeout: float = 60.0
    ) -> Self: ...
    @property
    def ranks(self) -> tuple[LocalCommunicator, ...]: ...
    @property
    def world_size(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rank: int, /) -> LocalCommunicator: ...
    def __iter__(self) -> Iterator[LocalCommunicator]: ...
    def abort(self) -> None: ...
    def run_all(
        self,
        stream: Any,
        plans: RingPlan | Sequence[RingPlan],
        args: Sequence[Any],
        *,
        timeline: Sequence[RingTimeline | None] | None = None,
    ) -> None: ...
