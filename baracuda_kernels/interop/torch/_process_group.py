"""Makes the communicator of a torch process group."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from baracuda_kernels import Communicator, LocalCommunicator, TransportCommunicator
from baracuda_kernels.errors import CommunicatorError, InvalidProblemError, UnsupportedError
from baracuda_kernels.interop import _torch_rendezvous
from baracuda_kernels.interop.torch._works import Works, end_connections, wait_all

# Looked up by name: it is private to a module with an export list.
_resolve: Any = vars(distributed_c10d)["_resolve_process_group"]

# A tag that differs from those of users' messages.
_TAG = 0x6261


def name_of(group: Any) -> str:
    """The name by which `resolve` finds the group again; empty for the default group."""
    if group is None:
        return ""
    if not isinstance(group, dist.ProcessGroup):
        group = _of_mesh(group)
    name: str = group.group_name
    return name


def _of_mesh(mesh: Any) -> dist.ProcessGroup:
    """The group of a DeviceMesh of one dimension."""
    module = sys.modules.get("torch.distributed.device_mesh")  # loaded if there is a mesh
    if module is None or not isinstance(mesh, module.DeviceMesh):
        raise InvalidProblemError(
            f"group: got {type(mesh).__name__}, must be a ProcessGroup that this process is a "
            "member of, a DeviceMesh of one dimension, or None for the default group"
        )
    if mesh.ndim != 1:
        raise InvalidProblemError(
            f"group: got a DeviceMesh of {mesh.ndim} dimensions, must have 1: give one of them, "
            "such "
            'as mesh["cp"]'
        )
    group: dist.ProcessGroup = mesh.get_group()
    return group


def resolve(name: str) -> dist.ProcessGroup:
    """The live process group of that name."""
    if not dist.is_initialized():
        raise InvalidProblemError(
            "group: got none, torch.distributed must be initialised: call init_process_group first"
        )
    everyone: Any = dist.group.WORLD
    try:
        group: dist.ProcessGroup = _resolve(name) if name else everyone
    except RuntimeError as error:
        raise InvalidProblemError(
            f"group: got {name!r}, which is destroyed, must be a live ProcessGroup"
        ) from error
    return group


def sends_cpu_tensors(name: str) -> bool:
    """Whether the group has a backend for the CPU, and more than one rank."""
    group = resolve(name)
    if group.size() == 1:
        return False
    try:
        group._get_backend(torch.device("cpu"))
    except RuntimeError:
        return False
    return True


def communicator(group: dist.ProcessGroup, device: torch.device) -> Any:
    """A communicator over the ranks of `group` for tensors on `device`. Collective.

    On the CPU the group itself sends K and V. On CUDA it is the group's NCCL communicator if this
    torch lends it, else a new one over the same ranks. A group of one rank needs neither.
    """
    if group.size() == 1:
        return LocalCommunicator.ring(1, device="host" if device.type == "cpu" else device.index)[0]
    if device.type == "cpu":
        return TransportCommunicator(GroupTransport(group))
    if _has_nccl(group, device):
        # Every rank must choose the same. The first collective makes the group's communicator.
        lent = torch.tensor([_lends(group, device)], dtype=torch.int32, device=device)
        dist.all_reduce(lent, op=dist.ReduceOp.MIN, group=group)
        if lent.item():
            return Communicator.from_torch(group, borrow=True, device=device.index)
    return Communicator.from_torch(group, device=device.index)


def _has_nccl(group: dist.ProcessGroup, device: torch.device) -> bool:
    try:
        return group._get_backend(device).name() == "nccl"
    except RuntimeError:  # the group has no backend for CUDA
        return False


def _lends(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether this library can use the group's communicator, even if it is not made yet."""
    try:
        _torch_rendezvous.lender(group, device.index)
    except UnsupportedError:
        return False
    return True


class GroupTransport:
    """The transport of a ring over a process group's point-to-point calls, on the CPU."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank, self.world_size = group.rank(), group.size()
        self._group = group
        self._pending: Works = []
        try:
            group._get_backend(torch.device("cpu"))
        except RuntimeError as error:
            raise InvalidProblemError(
                "group: got one that sends no CPU tensors, must send them for q on cpu: use a gloo "
                "group, or tensors on cuda"
            ) from error

    def group_start(self) -> None:
        self._pending.clear()

    def send(self, buffer: Any, peer: int, stream: None) -> None:
        self._begin(self._group.send, buffer, peer)

    def recv(self, buffer: Any, peer: int, stream: None) -> None:
        self._begin(self._group.recv, buffer, peer)

    def group_end(self) -> None:
        pending, self._pending = self._pending, []
        failure = wait_all(pending)
        if isinstance(failure, RuntimeError):
            raise self._failure(failure) from failure
        if failure is not None:
            raise failure

    def abort(self) -> None:
        end_connections(self._group)

    def _begin(self, call: Any, buffer: Any, peer: int) -> None:
        if buffer.nbytes == 0:
            return
        memory = (ctypes.c_char * buffer.nbytes).from_address(buffer.pointer)
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        try:
            # The tensor must outlive the transfer.
            self._pending.append((call([tensor], peer, _TAG), tensor))
        except RuntimeError as error:
            raise self._failure(error) from error

    def _failure(self, error: RuntimeError) -> CommunicatorError:
        return CommunicatorError(
            f"group: an exchange failed on rank {self.rank} of {self.world_size}: {error}"
        )
