"""A torch process group's ranks, and its NCCL communicator, for ``Communicator.from_torch``.

This module is outside of ``interop.torch``, whose import registers operators.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels._core import _nccl_library
from baracuda_kernels._core._rendezvous import agreed, attempt, ready_to_join
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError


def rendezvous(
    group: Any,
    device: int | None,
    max_ctas: int | None,
    exchange: str | None,
    timeout: float | None,
) -> tuple[int, int, bytes, int]:
    """(rank, world_size, unique id, device) of this process. The id is rank 0's, sent through the
    group. Collective."""
    group, rank = _member(group)

    def prepare() -> tuple[bytes | None, int]:
        ordinal = torch.cuda.current_device() if device is None else device
        return ready_to_join(rank, ordinal, max_ctas, exchange, timeout), ordinal

    everyone = _tell_all(attempt(prepare), group)
    token, ordinal = everyone[0][0], everyone[rank][1]
    return rank, len(everyone), token, ordinal


def _member(group: Any) -> tuple[Any, int]:
    """The group, torch's default one for None, and this process's rank in it."""
    if not dist.is_initialized():
        raise InvalidProblemError(
            "group: got none, torch.distributed must be initialised: call init_process_group first"
        )
    group = dist.group.WORLD if group is None else group
    rank = -1
    if isinstance(group, dist.ProcessGroup):
        with contextlib.suppress(ValueError):  # torch does not know it, or no longer
            rank = dist.get_rank(group)
    if rank < 0:
        raise InvalidProblemError(
            f"group: got {type(group).__name__}, must be a ProcessGroup that this process is a "
            "member of, or None for the default group"
        )
    return group, rank


def _tell_all(mine: Any, group: Any) -> list[Any]:
    """The objects of all ranks, in their order. An error among them is raised on every rank."""
    everyone = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    return agreed(everyone, dist.get_rank(group))


def lender(group: Any, device: int) -> Any:
    """The NCCL backend of a group, if this library can use its communicator.

    Raises
    ------
    UnsupportedError
        This torch does not give the handle, or uses another libnccl than this library.
    """
    backend = group._get_backend(torch.device("cuda", device))
    if not hasattr(backend, "_comm_ptr"):
        raise UnsupportedError(
            f"borrow: got True, must be False: torch {torch.__version__} does not give the NCCL "
            f"handle of {type(backend).__name__}"
        )
    copies = _loaded_nccl()
    path = _nccl_library.library_path()
    if not any(_same_file(path, copy) for copy in copies) or len(copies) != 1:
        raise UnsupportedError(
            f"borrow: got True, must be False: torch's NCCL is not {path}, and this process has "
            f"loaded {sorted(copies) or 'none as a shared library'}"
        )
    return backend


def agreed_handle(
    group: Any,
    device: int | None,
    max_ctas: int | None,
    exchange: str | None,
    timeout: float | None,
) -> tuple[int, int]:
    """(ncclComm_t, device) of an NCCL group that has made its communicator. Collective."""
    group, rank = _member(group)

    def prepare() -> tuple[int, int]:
        ordinal = torch.cuda.current_device() if device is None else device
        ready_to_join(-1, ordinal, max_ctas, exchange, timeout)
        return handle(group, ordinal), ordinal

    pointer, ordinal = _tell_all(attempt(prepare), group)[rank]
    return pointer, ordinal


def handle(group: Any, device: int) -> int:
    """The ncclComm_t of an NCCL group that has made its communicator."""
    pointer: int = lender(group, device)._comm_ptr()
    if not pointer:
        raise UnsupportedError(
            "group: got one whose NCCL communicator is not made yet, must have it: call "
            "init_process_group(device_id=...)"
        )
    return pointer


def _loaded_nccl() -> set[str]:
    with open("/proc/self/maps") as maps:
        return {line.split(None, 5)[5].strip() for line in maps if "libnccl.so" in line}


def _same_file(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False
