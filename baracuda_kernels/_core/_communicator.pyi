import builtins
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from typing_extensions import disjoint_base

from baracuda_kernels._core._errors import BaracudaError
from baracuda_kernels._core._member import RingMember

DEFAULT_TIMEOUT: float
DEFAULT_MAX_CTAS: int
DEFAULT_EXCHANGE: str

def exchange_info() -> dict[str, str]: ...

class HopExchange(NamedTuple):
    sender: int
    receiver: int
    kind: str
    reason: str

@disjoint_base
class UniqueId:
    def __new__(cls, data: builtins.bytes) -> Self: ...
    @property
    def bytes(self) -> builtins.bytes: ...
    @staticmethod
    def new() -> UniqueId: ...
    @staticmethod
    def from_bytes(data: builtins.bytes) -> UniqueId: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@disjoint_base
class Communicator(RingMember):
    @staticmethod
    def new_single_gpu(
        device: int = 0, *, exchange: str | None = None, timeout: float | None = 300.0
    ) -> Communicator: ...
    @staticmethod
    def init_all(
        devices: Sequence[int],
        *,
        max_ctas: int | None = None,
        exchange: str | None = None,
        timeout: float | None = 300.0,
    ) -> list[Communicator]: ...
    @staticmethod
    def init_rank(
        world_size: int,
        unique_id: UniqueId | builtins.bytes,
        rank: int,
        *,
        device: int | str | None = None,
        max_ctas: int | None = None,
        exchange: str | None = None,
        timeout: float | None = 300.0,
    ) -> Communicator: ...
    @staticmethod
    def from_handle(
        handle: int,
        *,
        device: int | str | None = None,
        max_ctas: int | None = None,
        exchange: str | None = None,
        timeout: float | None = 300.0,
        owner: Any = None,
    ) -> Communicator: ...
    @staticmethod
    def from_torch(
        group: Any = None,
        borrow: bool = False,
        *,
        device: int | None = None,
        max_ctas: int | None = None,
        exchange: str | None = None,
        timeout: float | None = 300.0,
    ) -> Communicator: ...
    @staticmethod
    def from_mpi(
        comm: Any,
        *,
        device: int | None = None,
        max_ctas: int | None = None,
        exchange: str | None = None,
        timeout: float | None = 300.0,
    ) -> Communicator: ...
    def split(
        self, color: int | None, key: int | None = None, *, timeout: float | None = None
    ) -> Communicator | None: ...
    @property
    def timeout(self) -> float: ...
    @property
    def handle(self) -> int: ...
    @property
    def owned(self) -> bool: ...
    @property
    def state(self) -> str: ...
    def register(self, buffer: Any) -> None: ...
    @property
    def exchange(self) -> tuple[HopExchange, ...]: ...
    def async_error(self) -> Exception | None: ...
    def abort(self) -> None: ...
    def refuse(self, error: BaracudaError) -> None: ...
    def synchronize(self, stream: Any, timeout: float | None = None) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        *exc_info: object,
    ) -> None: ...

def attempt(prepare: Callable[[], Any]) -> Any: ...
def agreed(everyone: list[Any], rank: int) -> list[Any]: ...
def ready_to_join(
    rank: int,
    device: int | str | None,
    max_ctas: int | None,
    exchange: str | None,
    timeout: float | None,
) -> builtins.bytes | None: ...
