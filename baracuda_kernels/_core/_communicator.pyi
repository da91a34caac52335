import builtins
from collections.abc import Sequence
from typing import Any

from baracuda_kernels._core._nccl_member import NcclMember
from baracuda_kernels._core._unique_id import UniqueId

class Communicator(NcclMember):
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
