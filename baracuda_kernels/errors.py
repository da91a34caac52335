"""The library's own errors."""

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

__all__ = [
    "BaracudaError", "BufferTooSmallError", "CommunicatorError", "CudaError",
    "InvalidProblemError", "MisalignedOperandError", "NcclError", "NcclTimeoutError",
    "UnsupportedError", "WorkspaceTooSmallError",
]
