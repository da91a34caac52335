from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class RingMember:
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def steps_enqueued(self) -> int: ...

@disjoint_base
class RingBinding:
    def __new__(cls) -> Self: ...
