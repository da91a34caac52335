"""The one table of how exact each kernel family must be, and the one way to hold a result to it.

Errors are relative: the norm of the difference over the norm of the exact answer. For 16-bit
outputs there is a finer measure for outputs large enough to be statistics: the rms error over the
rms error of merely rounding the exact answer to that dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from helpers.oracle import error_of

# Outputs of at least this many elements are held to `over_rounding` too.
STATISTICAL = 1 << 16


class Tolerance(NamedTuple):
    relative: float
    # Largest rms error in units of the rounding's; None where the output is not 16-bit.
    over_rounding: float | None
    # Precision of scores and state: its eps times the largest score bounds exp's relative error.
    eps: float
    # lse: absolute error, on top of the eps terms.
    lse: float


_F32, _F64 = 2.0**-24, 2.0**-53
# The largest relative error of one rounding to the dtype.
_BF16, _F16 = 2.0**-8, 2.0**-11
# Half the distance of float16's smallest numbers, where relative errors end.
_F16_FLOOR = 2.0**-25

# sm80 and sm90a also round the weights to 16 bits before the second product, as every tensor-core
# attention does; that costs about another rounding.
TOLERANCES = {
    ("host", "f64"): Tolerance(1e-12, None, _F64, 1e-12),
    ("host", "f32"): Tolerance(2e-6, None, _F32, 4e-6),
    ("host", "bf16"): Tolerance(1.02 * _BF16, 1.2, _F32, 4e-6),
    ("host", "f16"): Tolerance(1.02 * _F16, 1.2, _F32, 4e-6),
    ("simt", "f64"): Tolerance(1e-12, None, _F64, 1e-12),
    ("simt", "f32"): Tolerance(2e-6, None, _F32, 4e-6),
    ("simt", "bf16"): Tolerance(1.02 * _BF16, 1.2, _F32, 4e-6),
    ("simt", "f16"): Tolerance(1.02 * _F16, 1.2, _F32, 4e-6),
    ("sm80", "bf16"): Tolerance(2.0 * _BF16, 1.75, _F32, 4e-6),
    ("sm80", "f16"): Tolerance(2.0 * _F16, 1.75, _F32, 4e-6),
    ("sm90a", "bf16"): Tolerance(2.0 * _BF16, 1.75, _F32, 4e-6),
    ("sm90a", "f16"): Tolerance(2.0 * _F16, 1.75, _F32, 4e-6),
}


class GradientTolerance(NamedTuple):
    relative: float
    # As above, over the rounding of the exact gradient. It is more than 1 where y, from which delta is
    # made, has been rounded to 16 bits.
    over_rounding: float | None
    # Precision of scores and sums.
    eps: float


# Of dq, dk and dv alike.
GRADIENT_TOLERANCES = {
    ("host", "f64"): GradientTolerance(1e-12, None, _F64),
    ("host", "f32"): GradientTolerance(2e-6, None, _F32),
    ("host", "bf16"): GradientTolerance(1.02 * _BF16, 1.25, _F32),
    ("host", "f16"): GradientTolerance(1.02 * _F16, 1.25, _F32),
    ("simt", "f64"): GradientTolerance(1e-12, None, _F64),
    ("simt", "f32"): GradientTolerance(2e-6, None, _F32),
    ("simt", "bf16"): GradientTolerance(1.02 * _BF16, 1.25, _F32),
    ("simt", "f16"): GradientTolerance(1.02 * _F16, 1.25, _F32),
    # P and dS are rounded to 16 bits before their products, which costs about another rounding:
    # sqrt(2), and half of that for y's.
    ("sm80", "bf16"): GradientTolerance(2.0 * _BF16, 1.5 * 2**0.5, _F32),
    ("sm80", "f16"): GradientTolerance(2.0 * _F16, 1.5 * 2**0.5, _F32),
    ("sm90a", "bf16"): GradientTolerance(2.0 * _BF16, 1.5 * 2**0.5, _F32),
    ("sm90a", "f16"): GradientTolerance(2.0 * _F16, 1.5 * 2**0.5, _F32),
}

NUMPY_DTYPES = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}


def assert_close(
    family: str,
    dtype: str,
    y: Any,
    exact_y: Any,
    lse: Any,
    exact_lse: Any,
    *,
    score: float = 0.0,
    lse_score: float | None = None,
    summands: Any = None,
) -> None:
    """Hold y and lse (NumPy, or tensors with ``.cpu()``) to the family's tolerance.

    `score` is the largest scaled score where it is beyond the ordinary (large logits or a large
    scale); 0 asks for the plain tolerance of y. `lse_score` is the same for lse, `score` by
    default. `summands` is the exact attention over the absolute values of V, for problems with so
    few columns of V that their sums may nearly cancel by chance: rounding is relative to what was
    added up.
    """
    tolerance = TOLERANCES[family, dtype]
    y, exact_y, lse, exact_lse = (_numpy(x) for x in (y, exact_y, lse, exact_lse))
    wrong = np.isneginf(exact_lse) != np.isneginf(lse)
    assert not wrong.any(), f"{wrong.sum()} rows differ in whether they see any key"
    assert not np.isnan(y.astype(np.float64)).any(), "NaN in y"

    extra = 4 * tolerance.eps * score
    error = error_of(y, exact_y)
    floor = _F16_FLOOR if dtype == "f16" else 0.0
    if summands is not None:
        floor = max(floor, 4 * tolerance.eps * float(np.max(summands, initial=0.0)))
    assert error["relative"] <= tolerance.relative + extra or error["max"] <= floor, (
        f"{family} {dtype}: relative error of y {error['relative']:.3e} > "
        f"{tolerance.relative + extra:.3e}"
    )
    seen = ~np.isneginf(exact_lse)
    off = np.abs(lse.astype(np.float64)[seen] - exact_lse[seen])
    lse_extra = 4 * tolerance.eps * (score if lse_score is None else lse_score)
    allowed = tolerance.lse + 4 * tolerance.eps * np.abs(exact_lse[seen]) + lse_extra
    assert (off <= allowed).all(), f"{family} {dtype}: lse off by {off.max():.3e}"
    if tolerance.over_rounding is not None and exact_y.size >= STATISTICAL and not score:
        ratio = rms_over_rounding(y, exact_y, dtype)
        assert ratio <= tolerance.over_rounding, (
            f"{family} {dtype}: rms error is {ratio:.3f}x that of rounding the exact answer, "
            f"more than {tolerance.over_rounding}x"
        )


def assert_gradients(
    family: str,
    dtype: str,
    got: Any,
    exact: Any,
    *,
    score: float = 0.0,
    summands: float = 0.0,
    peaked: bool = False,
) -> None:
    """Hold (dq, dk, dv) to the family's tolerance; in all dtypes that an output may have.

    `score` is as in :func:`assert_close`. `summands` is how large the numbers are that a gradient is
    the sum of, where those nearly cancel: rows that see one key have dq = 0. `peaked` is for softmax
    rows close to one-hot, where what y was rounded by is the largest error of a 16-bit gradient.
    """
    tolerance = GRADIENT_TOLERANCES[family.removesuffix("-deterministic"), dtype]
    allowed = (tolerance.relative + 8 * tolerance.eps * score) * (2.5 if peaked else 1.0)
    floor = 16 * tolerance.eps * summands + (_F16_FLOOR if dtype == "f16" else 0.0)
    for name, one, truth in zip(("dq", "dk", "dv"), got, exact, strict=True):
        one, truth = _numpy(one), _numpy(truth)
        assert np.isfinite(one.astype(np.float64)).all(), f"{name} is not finite"
        error = error_of(one, truth)
        assert error["relative"] <= allowed or error["max"] <= floor, (
            f"{family} {dtype}: relative error of {name} {error['relative']:.3e} > {allowed:.3e}, "
            f"at most {error['max']:.3e} > {floor:.3e}"
        )
        if tolerance.over_rounding is not None and one.itemsize == 2 and not (score or peaked) \
                and truth.size >= STATISTICAL:
            ratio = rms_over_rounding(one, truth, dtype)
            assert ratio <= tolerance.over_rounding, (
                f"{family} {dtype}: rms error of {name} is {ratio:.3f}x that of rounding the exact "
                f"one, more than {tolerance.over_rounding}x"
            )


def rms_over_rounding(y: Any, exact_y: Any, dtype: str) -> float:
    """rms error in units of the rms error of rounding the exact answer to `dtype`.

    Where the exact answer needs no rounding (one visible key), any error is infinitely many units.
    """
    y, exact_y = _numpy(y), _numpy(exact_y)
    error = error_of(y, exact_y)["rms"]
    rounding = error_of(exact_y.astype(NUMPY_DTYPES[dtype]), exact_y)["rms"]
    if rounding == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / rounding


def _numpy(x: Any) -> np.ndarray:
    if not hasattr(x, "detach"):
        return np.asarray(x)
    x = x.detach().cpu()
    # NumPy has no bfloat16 of torch's; float32 holds every bfloat16 exactly.
    return (x.float() if x.element_size() == 2 else x).numpy()
