"""What one rank refuses ends on the others too."""

from __future__ import annotations

import torch
import torch.distributed as dist

from baracuda_kernels.errors import BaracudaError


def tell(group_name: str, error: BaracudaError, device: torch.device | None = None) -> None:
    """Give an error, found before this rank has sent anything, to the ranks that wait for it.

    They get it in place of this rank's side of the comparison that begins every call, which is on
    the CPU alone; on CUDA they wait until a deadline passes. The caller raises the error.
    """
    if torch.compiler.is_compiling() or not dist.is_initialized():
        return
    if device is not None and device.type != "cpu":
        return
    from baracuda_kernels.interop.torch import _process_group
    from baracuda_kernels.interop.torch._ring import ring_of

    if _process_group.sends_cpu_tensors(group_name):
        ring_of(group_name, torch.device("cpu")).refuse(error)
