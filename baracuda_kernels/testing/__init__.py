"""Checks for adapters and kernels: a float64 oracle, random inputs, and tolerances.

The package's tests and benchmarks use it. `docs/testing.md` shows how the author of an adapter uses
it. It needs NumPy and ml_dtypes, and takes PyTorch tensors on any device.
"""

from baracuda_kernels.testing._inputs import (
    DISTRIBUTIONS,
    NUMPY_DTYPES,
    TORCH_DTYPES,
    numpy_qkv,
    torch_qkv,
)
from baracuda_kernels.testing._oracle import attention, attention_backward, error_of, max_score
from baracuda_kernels.testing._preference import preference
from baracuda_kernels.testing._tolerances import (
    GRADIENT_TOLERANCES,
    STATISTICAL,
    TOLERANCES,
    GradientTolerance,
    Tolerance,
    assert_close,
    assert_gradients,
    rms_over_rounding,
)

__all__ = [
    "DISTRIBUTIONS",
    "GRADIENT_TOLERANCES",
    "NUMPY_DTYPES",
    "STATISTICAL",
    "TOLERANCES",
    "TORCH_DTYPES",
    "GradientTolerance",
    "Tolerance",
    "assert_close",
    "assert_gradients",
    "attention",
    "attention_backward",
    "error_of",
    "max_score",
    "numpy_qkv",
    "preference",
    "rms_over_rounding",
    "torch_qkv",
]
