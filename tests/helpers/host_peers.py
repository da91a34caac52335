"""The peer exchange on host memory: ranks of one process, on threads or simulated streams."""

from __future__ import annotations

import ctypes as ct
import threading
from functools import cache
from typing import Any

from . import ring_abi as abi
from .c_headers import constants, structure
from .ring_abi import Failure, LocalWorld

AUTO, REQUIRED, NEVER = constants("PEER_", "AUTO", "REQUIRED", "NEVER")
EVENT, VALUE, GATE = constants("PEER_WAIT_", "EVENT", "VALUE", "GATE")
(
    WORKS, NOT_ASKED, NO_DEVICE, OTHER_HOST, NO_SHARED_FILE, NO_EXPORT, NO_ACCESS, TRIAL_FAILED,
    ONE_PROCESS,
) = constants(
    "PEER_",
    "WORKS", "NOT_ASKED", "NO_DEVICE", "OTHER_HOST", "NO_SHARED_FILE", "NO_EXPORT", "NO_ACCESS",
    "TRIAL_FAILED", "ONE_PROCESS",
)  # fmt: skip
Options = structure("peer_options")


@cache
def host() -> ct.CDLL:
    """host_peer.cpp."""
    lib = ct.CDLL(abi.build_helper("host_peer.cpp"))
    lib.host_peer_ops.restype = ct.c_void_p
    lib.host_peer_push_to.argtypes = [ct.c_void_p, ct.c_int]
    return lib


@cache
def library() -> ct.CDLL:
    return declare(abi.library())


def declare(lib: ct.CDLL) -> ct.CDLL:
    """The library, with its functions of peer.h described."""
    pointer = ct.c_void_p
    lib.baracuda_peer_connect.argtypes = [
        ct.POINTER(abi.Endpoint), ct.POINTER(Options), ct.POINTER(pointer)
    ]  # fmt: skip
    lib.baracuda_peer_reason_of.argtypes = [pointer, ct.c_int32]
    lib.baracuda_peer_detail_of.argtypes = [pointer, ct.c_int32]
    lib.baracuda_peer_detail_of.restype = ct.c_char_p
    lib.baracuda_peer_register.argtypes = [pointer, pointer, ct.c_int64]
    lib.baracuda_peer_abort.argtypes = [pointer, ct.POINTER(abi.Error)]
    lib.baracuda_peer_check.argtypes = [pointer]
    lib.baracuda_peer_close.argtypes = [pointer, ct.c_double, ct.POINTER(ct.c_int32)]
    return lib


def on_threads(count: int, work: Any, seconds: float = 60) -> list[Any]:
    """The results of work(rank), each on its own thread."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def drive(rank: int) -> None:
        try:
            results[rank] = work(rank)
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            errors.append(error)

    threads = [threading.Thread(target=drive, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    if errors:
        raise errors[0]
    return results


class Peers:
    """The ranks of a local world with the peer exchange between them."""

    def __init__(self, world: LocalWorld, *, wishes: Any = AUTO, wait: int = EVENT,
                 without_device: tuple[int, ...] = (), trial_seconds: float = 10.0) -> None:  # fmt: skip
        library(), host()  # found once, before the threads
        self.world, self.size = world, len(world.endpoints)
        self.wishes = [wishes] * self.size if isinstance(wishes, int) else wishes
        self.handles = [ct.c_void_p() for _ in range(self.size)]

        def connect(rank: int) -> Failure | None:
            ops = None if rank in without_device else host().host_peer_ops()
            options = Options(ct.sizeof(Options), ops, self.wishes[rank], wait, trial_seconds)
            status = library().baracuda_peer_connect(
                world.endpoints[rank], options, self.handles[rank]
            )
            return abi.last_failure() if status else None

        self.failures = on_threads(self.size, connect)

    def reasons(self, rank: int = 0) -> list[int]:
        lib = library()
        return [lib.baracuda_peer_reason_of(self.handles[rank], r) for r in range(self.size)]

    def register(self, buffers: list[Any]) -> list[Failure | None]:
        """Register one array on every rank. Returns each rank's failure, or None."""

        self.kept = [*getattr(self, "kept", []), buffers]  # as a communicator keeps them

        def work(rank: int) -> Failure | None:
            x = buffers[rank]
            status = library().baracuda_peer_register(self.handles[rank], x.ctypes.data, x.nbytes)
            return abi.last_failure() if status else None

        return on_threads(self.size, work)

    def abort(self, rank: int, reason: abi.Error) -> None:
        library().baracuda_peer_abort(self.handles[rank], reason)

    def check(self, rank: int) -> Failure | None:
        return abi.last_failure() if library().baracuda_peer_check(self.handles[rank]) else None

    def close(self) -> list[int]:
        """Whether each rank's buffers stay in quarantine."""

        def work(rank: int) -> int:
            stays = ct.c_int32()
            assert library().baracuda_peer_close(self.handles[rank], 5.0, stays) == abi.OK
            return stays.value

        return on_threads(self.size, work)
