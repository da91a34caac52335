"""Waits for a ring's work on the device, and notices if another rank has failed."""

from __future__ import annotations

from typing import Any

import torch

from baracuda_kernels import Communicator
from baracuda_kernels._arguments import number
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.interop.torch import _process_group
from baracuda_kernels.interop.torch._ring import find_ring


def synchronize(group: Any = None, timeout: float | None = None) -> None:
    """Wait until PyTorch's current stream is done, or raise after `timeout` seconds.

    ``torch.cuda.synchronize``, ``loss.item()`` and other calls that wait for the device wait for
    ever if a rank has died or hangs. Call this before them, for each ring of the step: it raises
    instead. If no call has made the group's ring on the current device, or the ring has one rank,
    it waits without a timeout. Without CUDA it returns at once.

    Parameters
    ----------
    group : ProcessGroup or DeviceMesh of one dimension, optional
        As in `ring_attention`.
    timeout : float, optional
        Seconds, more than 0; by default the timeout of the ring's communicator, 300.

    Raises
    ------
    InvalidProblemError
        The group or the timeout is wrong.
    NcclTimeoutError
        The stream was not done in time. The ring has failed on this rank, and on the other ranks of
        this host.
    CommunicatorError, NcclError
        The ring has failed, here or on another rank of this host.
    CudaError
        The device failed.
    """
    if timeout is not None and not number("timeout", timeout) > 0:
        raise InvalidProblemError(f"timeout: got {timeout}, must be more than 0 seconds")
    name = _process_group.name_of(group)
    _process_group.resolve(name)
    if not torch.cuda.is_available():
        return
    ring = find_ring(name, torch.device("cuda", torch.cuda.current_device()))
    if ring is None or not isinstance(ring.comm, Communicator):
        torch.cuda.current_stream().synchronize()
    else:
        ring.comm.synchronize(ring.stream(), timeout)
