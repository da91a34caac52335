"""CUDA kernels behind plans. First op: Ring Attention, exact attention over a sharded sequence.

Importing this needs no GPU, no driver, no NCCL and no framework.
"""

from __future__ import annotations

import importlib as _importlib
import os as _os
import sys as _sys
import typing as _typing


def _has_modules(folder: str) -> bool:
    return _os.path.isfile(_os.path.join(folder, "_core", "__init__.py"))


def _installed_path() -> list[str]:
    """Folder of the compiled package.

    A checkout has this folder at its top, without the compiled modules. Python started there
    imports it in place of the installed package. The folder of the installed package is used then.
    """
    for entry in _sys.path:
        folder = _os.path.join(_os.path.abspath(entry), "baracuda_kernels")
        if _has_modules(folder):
            return [folder]
    raise ImportError(
        f"baracuda_kernels: {__path__[0]} is a source folder without compiled modules, and no "
        "installed copy was found; run 'pip install .' in the checkout first")


if not any(_has_modules(folder) for folder in __path__):
    __path__ = _installed_path()

from baracuda_kernels import errors, registry
from baracuda_kernels._core._communicator import Communicator
from baracuda_kernels._core._enums import (
    ArchSku,
    BackendKind,
    Direction,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
    SequenceLayout,
)
from baracuda_kernels._core._errors import (
    BaracudaError,
    BufferTooSmallError,
    CommunicatorError,
    CudaError,
    InvalidProblemError,
    MisalignedOperandError,
    NcclError,
    NcclTimeoutError,
    UnsupportedError,
    WorkspaceTooSmallError,
)
from baracuda_kernels._core._info import build_info as _build_info
from baracuda_kernels._core._info import devices as _devices  # noqa: F401
from baracuda_kernels._core._local import LocalCommunicator, LocalRing
from baracuda_kernels._core._nccl_library import probe as _nccl_probe  # noqa: F401
from baracuda_kernels._core._nccl_member import HopExchange
from baracuda_kernels._core._sku import (
    KernelSku,
    PlanPreference,
    PrecisionGuarantee,
)
from baracuda_kernels._core._stream import Stream
from baracuda_kernels._core._tensor import DeviceSlice, TensorMut, TensorRef
from baracuda_kernels._core._timeline import RingSpan, RingStepTime, RingTimeline
from baracuda_kernels._core._transport import Transport, TransportCommunicator
from baracuda_kernels._core._unique_id import UniqueId
from baracuda_kernels.ops.attention._kind import AttentionKind
from baracuda_kernels.ops.ring_attention import (
    RingAttentionArgs,
    RingAttentionBackwardArgs,
    RingAttentionBackwardPlan,
    RingAttentionDescriptor,
    RingAttentionPlan,
)

# isort: split
# After the imports above: `explain` has the first registered op as its default.
from baracuda_kernels.ops.flash_sdpa import (
    FlashSdpaArgs,
    FlashSdpaBackwardArgs,
    FlashSdpaBackwardPlan,
    FlashSdpaDescriptor,
    FlashSdpaPlan,
)

if _typing.TYPE_CHECKING:
    from baracuda_kernels.local_ring import run_local_ring
    from baracuda_kernels.sharding import positions, shard, unshard

__version__: str = _build_info()["version"]

# Loaded on first use, since they need NumPy and the core does not.
_LAZY = {
    "positions": "sharding",
    "run_local_ring": "local_ring",
    "shard": "sharding",
    "unshard": "sharding",
}

__all__ = [
    "ArchSku", "AttentionKind", "BackendKind", "BaracudaError", "BufferTooSmallError",
    "Communicator", "CommunicatorError", "CudaError", "DeviceSlice", "Direction", "ElementKind",
    "EpilogueKind", "FlashSdpaArgs", "FlashSdpaBackwardArgs", "FlashSdpaBackwardPlan",
    "FlashSdpaDescriptor", "FlashSdpaPlan",
    "HopExchange", "InvalidProblemError", "KernelSku", "LayoutSku", "LocalCommunicator",
    "LocalRing",
    "MathPrecision", "MisalignedOperandError", "NcclError", "NcclTimeoutError", "OpCategory",
    "PlanPreference", "PrecisionGuarantee", "RingAttentionArgs", "RingAttentionBackwardArgs",
    "RingAttentionBackwardPlan", "RingAttentionDescriptor", "RingAttentionPlan", "RingSpan", "RingStepTime", "RingTimeline",
    "SequenceLayout", "Stream", "TensorMut", "TensorRef", "Transport",
    "TransportCommunicator", "UniqueId", "UnsupportedError", "WorkspaceTooSmallError",
    "__version__", "errors", "positions", "registry", "run_local_ring", "shard", "unshard",
]


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'baracuda_kernels' has no attribute {name!r}")
    value = getattr(_importlib.import_module(f"baracuda_kernels.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
