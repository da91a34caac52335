"""From a torch process group to a communicator."""

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

# By name, as it is private to a module that says what it exports.
_resolve: Any = vars(distributed_c10d)["_resolve_process_group"]

# Away from the small numbers that users give their own messages.
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
            f"group: got a DeviceMesh of {mesh.ndim} dimensions, must have 1; name one of them, as "
            'in mesh["cp"]'
        )
    group: dist.ProcessGroup = mesh.get_group()
    return group


def resolve(name: str) -> dist.ProcessGroup:
    """The live process group of that name."""
    if not dist.is_initialized():
        raise InvalidProblemError(
            "group: torch.distributed is not initialised; call init_process_group first"
        )
    everyone: Any = dist.group.WORLD
    group: dist.ProcessGroup = _resolve(name) if name else everyone
    return group


def sends_cpu_tensors(name: str) -> bool:
    """Whether that group has a backend for the CPU, and other ranks to send to."""
    group = resolve(name)
    if group.size() == 1:
        return False
    try:
        group._get_backend(torch.device("cpu"))
    except RuntimeError:
        return False
    return True


def communicator(group: dist.ProcessGroup, device: torch.device) -> Any:
    """A ring over the ranks of `group` for tensors on `device`; collective.

    On the CPU the group's own messages carry K and V. On CUDA it is the NCCL communicator of the
    group where this torch lends it, else one of our own over the same ranks. A group of one rank
    needs neither.
    """
    if group.size() == 1:
        return LocalCommunicator.ring(1, device="host" if device.type == "cpu" else device.index)[0]
    if device.type == "cpu":
        return TransportCommunicator(GroupTransport(group))
    if _has_nccl(group, device):
        # Every rank must choose alike, and the first collective makes the group's communicator.
        lent = torch.tensor([_lends(group, device)], dtype=torch.int32, device=device)
        dist.all_reduce(lent, op=dist.ReduceOp.MIN, group=group)
        if lent.item():
            return Communicator.from_torch(group, borrow=True, device=device.index)
    return Communicator.from_torch(group, device=device.index)


def _has_nccl(group: dist.ProcessGroup, device: torch.device) -> bool:
    try:
        return group._get_backend(device).name() == "nccl"
    except RuntimeError:  # no backend at all for CUDA
        return False


def _lends(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether the group's communicator can be used here, made already or not."""
    try:
        _torch_rendezvous.lender(group, device.index)
    except UnsupportedError:
        return False
    return True


class GroupTransport:
    """Messages of a ring over a process group's point-to-point calls, on the CPU."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank, self.world_size = group.rank(), group.size()
        self._group = group
        self._pending: Works = []
        try:
            group._get_backend(torch.device("cpu"))
        except RuntimeError as error:
            raise InvalidProblemError(
                "group: it moves no CPU tensors, and q lies on cpu; use a gloo group, or tensors "
                "on cuda"
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
        end_connections(self._group)
        return CommunicatorError(
            f"group: an exchange failed on rank {self.rank} of {self.world_size}: {error}"
        )
