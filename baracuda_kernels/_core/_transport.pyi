from typing import Any, Protocol, Self, runtime_checkable

from typing_extensions import disjoint_base

from baracuda_kernels._core._member import RingMember
from baracuda_kernels._core._stream import Stream
from baracuda_kernels._core._tensor import DeviceSlice

@runtime_checkable
class Transport(Protocol):
    rank: int
    world_size: int
    def group_start(self) -> None: ...
    def send(self, buffer: DeviceSlice, peer: int, stream: Stream | None) -> None: ...
    def recv(self, buffer: DeviceSlice, peer: int, stream: Stream | None) -> None: ...
    def group_end(self) -> None: ...

@disjoint_base
class TransportCommunicator(RingMember):
    def __new__(cls, transport: Any, device: int = -1) -> Self: ...
    @staticmethod
    def of(transport: Any, device: int) -> TransportCommunicator: ...
