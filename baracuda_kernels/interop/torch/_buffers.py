"""The receive buffers of a ring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from baracuda_kernels import Communicator
from baracuda_kernels._core._device_buffer import DeviceBuffer


class Buffers:
    """Receive buffers: a new tensor for every call, or with the peer exchange registered memory.

    With the peer exchange, the copy engine of the previous rank writes into this rank's registered
    memory. Memory of PyTorch's allocator cannot be registered: another process may not be able to
    open it, and the allocator may free it.
    """

    def __init__(self, comm: Any, device: torch.device) -> None:
        self.by_peer = isinstance(comm, Communicator) and any(
            hop.kind == "peer" for hop in comm.exchange
        )
        self._comm = comm
        self._device = device
        self._own: dict[str, torch.Tensor] = {}  # registered bytes, by argument
        self._last_stream: int | None = None

    def close(self) -> None:
        self._own.clear()

    def of(self, name: str, elements: int, q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Memory for an argument of a call: the argument's registered memory if that is large
        enough, else a new tensor."""
        own, nbytes = self._own.get(name), elements * dtype.itemsize
        if own is not None and 0 < nbytes <= own.numel():
            return own[:nbytes].view(dtype)
        return q.new_empty(elements, dtype=dtype)

    def allocate(self, travel: Mapping[str, torch.Tensor]) -> dict[str, DeviceBuffer]:
        """New memory for the arguments whose own memory is too small, for `register`.

        All ranks have agreed on the problem, so all of them allocate for the same arguments.
        """
        if not self.by_peer:
            return {}
        return {
            name: DeviceBuffer(wanted.nbytes, self._device.index)
            for name, wanted in travel.items()
            if wanted.nbytes > (self._own[name].numel() if name in self._own else 0)
        }

    def register(self, room: Mapping[str, DeviceBuffer]) -> None:
        """Let the previous rank write into the memory. Collective.

        Earlier memory stays registered, since graphs may have captured it.
        """
        for name, buffer in room.items():
            self._comm.register(buffer)
            self._own[name] = torch.as_tensor(buffer, device=self._device)

    def follow_last_stream(self) -> None:
        """Let PyTorch's current stream wait for the last call, which may still read this memory."""
        handle = torch._C._cuda_getCurrentRawStream(self._device.index)
        if handle == self._last_stream or torch.cuda.is_current_stream_capturing():
            return
        if self._last_stream is not None:
            last = torch.cuda.ExternalStream(self._last_stream, device=self._device)
            torch.cuda.current_stream(self._device).wait_stream(last)
        self._last_stream = handle
