"""A torch process group's ranks, and its NCCL communicator, for ``Communicator.from_torch``.

Beside ``interop.torch`` and not in it: that one registers an operator when it is imported.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels import UniqueId
from baracuda_kernels._core import _nccl_library
from baracuda_kernels._core._communicator import id_to_send, received_id
from baracuda_kernels.errors import UnsupportedError


def rendezvous(group: Any, device: int | None) -> tuple[int, int, UniqueId, int]:
    """(rank, world_size, UniqueId, device) of a process group; sends the id through it."""
    group = dist.group.WORLD if group is None else group
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    box = [id_to_send() if rank == 0 else None]
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group)
    token = received_id(box[0], rank)
    if device is None:
        device = torch.cuda.current_device()
    return rank, world_size, token, device


def lender(group: Any, device: int) -> Any:
    """The NCCL backend of a group, where its communicator can be used here once it is made.

    Raises
    ------
    UnsupportedError
        This torch does not give the handle, or uses another libnccl than this library.
    """
    backend = group._get_backend(torch.device("cuda", device))
    if not hasattr(backend, "_comm_ptr"):
        raise UnsupportedError(
            f"group: torch {torch.__version__} does not give the NCCL handle of "
            f"{type(backend).__name__}; use borrow=False"
        )
    copies = _loaded_nccl()
    path = _nccl_library.library_path()
    if not any(_same_file(path, copy) for copy in copies) or len(copies) != 1:
        raise UnsupportedError(
            f"group: torch's NCCL must be the one used here ({path}), but this process has loaded "
            f"{sorted(copies) or 'none as a shared library'}; use borrow=False"
        )
    return backend


def handle(group: Any, device: int | None) -> tuple[int, int]:
    """(ncclComm_t, device) of a NCCL group that has made its communicator."""
    group = dist.group.WORLD if group is None else group
    if device is None:
        device = torch.cuda.current_device()
    pointer = lender(group, device)._comm_ptr()
    if not pointer:
        raise UnsupportedError(
            "group: its NCCL communicator is not made yet; init_process_group(device_id=...) "
            "makes it at once"
        )
    return pointer, device


def _loaded_nccl() -> set[str]:
    with open("/proc/self/maps") as maps:
        return {line.split(None, 5)[5].strip() for line in maps if "libnccl.so" in line}


def _same_file(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False
