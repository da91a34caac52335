"""The tolerances of each kernel family, and the checks of a result against them.

Errors are relative: the norm of the difference over the norm of the exact answer. Large 16-bit
outputs have a finer measure too: the rms error over the rms error of rounding the exact answer to
that dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np

from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.reference import error_of
from baracuda_kernels.testing._inputs import NUMPY_DTYPES

# Outputs of at least this many elements must meet `over_rounding` too.
STATISTICAL = 1 << 16


class Tolerance(NamedTuple):
    """The tolerance of y and lse of one family and dtype."""

    # Norm of y's error over the norm of y.
    relative: float
    # Largest rms error over the rms error of rounding; None if the output is not 16-bit.
    over_rounding: float | None
    # eps of scores and state. eps times the largest score bounds the relative error of exp.
    eps: float
    # Absolute error of lse, in addition to the eps terms.
    lse: float


_F32, _F64 = 2.0**-24, 2.0**-53
# The largest relative error of one rounding to the dtype.
_BF16, _F16 = 2.0**-8, 2.0**-11
# Half the distance of float16's smallest numbers: below, errors are absolute.
_F16_FLOOR = 2.0**-25

# sm80 and sm90a also round the weights to 16 bits before the second product, as every tensor-core
# attention does. That adds about one more rounding error.
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
    """The tolerance of dq, dk and dv of one family and dtype."""

    relative: float
    # Largest rms error over the rms error of rounding the exact gradient; None if the operands are
    # not 16-bit. It is more than 1 since delta is computed from a y that was rounded to 16 bits.
    over_rounding: float | None
    # eps of scores and sums.
    eps: float


# delta's error is largest in rows that see few keys, as the first of a causal problem do. In 129
# causal rows of the host family the ratio was up to 1.29, in 520 rows below 1.25.
_DELTA = 1.4

GRADIENT_TOLERANCES = {
    ("host", "f64"): GradientTolerance(1e-12, None, _F64),
    ("host", "f32"): GradientTolerance(2e-6, None, _F32),
    ("host", "bf16"): GradientTolerance(1.02 * _BF16, _DELTA, _F32),
    ("host", "f16"): GradientTolerance(1.02 * _F16, _DELTA, _F32),
    ("simt", "f64"): GradientTolerance(1e-12, None, _F64),
    ("simt", "f32"): GradientTolerance(2e-6, None, _F32),
    ("simt", "bf16"): GradientTolerance(1.02 * _BF16, _DELTA, _F32),
    ("simt", "f16"): GradientTolerance(1.02 * _F16, _DELTA, _F32),
    # P and dS are rounded to 16 bits before their products. That adds about one more rounding
    # error, a factor of sqrt(2); the rounding of y adds half as much again.
    ("sm80", "bf16"): GradientTolerance(2.0 * _BF16, 1.5 * 2**0.5, _F32),
    ("sm80", "f16"): GradientTolerance(2.0 * _F16, 1.5 * 2**0.5, _F32),
    ("sm90a", "bf16"): GradientTolerance(2.0 * _BF16, 1.5 * 2**0.5, _F32),
    ("sm90a", "f16"): GradientTolerance(2.0 * _F16, 1.5 * 2**0.5, _F32),
}

# The error of one element may be at most this many times the tolerance times the largest exact
# element. Norms alone do not show one wrong element, or row, of a large output. In the tests on
# a GPU the largest were 1.4 (simt) and 0.9 (sm80, sm90a).
_LARGEST = 4.0


def assert_close(
    family: str,
    dtype: str,
    y: Any,
    exact_y: Any,
    lse: Any = None,
    exact_lse: Any = None,
    *,
    score: float = 0.0,
    lse_score: float | None = None,
    summands: Any = None,
) -> None:
    """Check y, and lse if given, against the tolerance of the family that computed them.

    Parameters
    ----------
    family : str
        The plan's `family`: "host", "simt", "sm80" or "sm90a".
    dtype : str
        "f16", "bf16", "f32" or "f64".
    y : array_like or torch.Tensor
        The answer, ``[B, H, Q, D]``, on any device.
    exact_y : array_like or torch.Tensor
        The result of :func:`attention`.
    lse : array_like or torch.Tensor, optional
        ``[B, H, Q]``. Not checked if None.
    exact_lse : array_like or torch.Tensor, optional
        The result of :func:`attention`. Needed with `lse`.
    score : float, default 0
        The largest scaled score (:func:`max_score`), for inputs with large logits or a large scale.
        0: the tolerance of y does not depend on scores, and large 16-bit outputs are also compared
        with the rounding of the exact answer.
    lse_score : float, optional
        The same for lse. Default `score`.
    summands : array_like, optional
        The exact attention over the absolute values of V. Give it if V has few columns, whose sums
        may nearly cancel: rounding errors are relative to the summands.

    Raises
    ------
    AssertionError
        If the error is too large, by its norm or in one element; if the answer has a
        NaN, or a row without keys is not 0 or has another lse than -inf. Rows without keys are
        those whose exact lse is -inf; without lse, those whose exact y is 0.
    InvalidProblemError
        If the family has no kernels of that dtype, or an answer and its exact one differ in shape.
    """
    tolerance = _of(TOLERANCES, family, dtype)
    y, exact_y = _numpy(y), _numpy(exact_y)
    if lse is not None:
        lse, exact_lse = _numpy(lse), _numpy(exact_lse)
        if lse.shape != exact_lse.shape:  # () of None, too
            raise InvalidProblemError(
                f"exact_lse: got shape {exact_lse.shape}, must be that of lse, {lse.shape}"
            )
    _require(not np.isnan(y.astype(np.float64)).any(), "NaN in y")
    extra = 4 * tolerance.eps * score
    error = error_of(y, exact_y)
    floor = _F16_FLOOR if dtype == "f16" else 0.0
    if summands is not None:
        floor = max(floor, 4 * tolerance.eps * float(np.max(summands, initial=0.0)))
    _require(
        error["relative"] <= tolerance.relative + extra or error["max"] <= floor,
        f"{family} {dtype}: relative error of y {error['relative']:.3e} > "
        f"{tolerance.relative + extra:.3e}",
    )
    _check_largest(f"{family} {dtype}: y", tolerance.relative + extra, floor, error, exact_y)
    blind = (exact_y == 0).all(axis=-1) if lse is None else np.isneginf(exact_lse)
    wrong = (y[blind] != 0).any(axis=-1)
    _require(not wrong.any(), f"{family} {dtype}: {wrong.sum()} rows without keys are not 0")
    if lse is not None:
        _check_lse(
            f"{family} {dtype}", tolerance, lse, exact_lse,
            score if lse_score is None else lse_score,
        )  # fmt: skip
    if not score:
        _check_rounding(f"{family} {dtype}: rms error", tolerance, y, exact_y, dtype)


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
    """Check dq, dk and dv against the tolerance of the family that computed them.

    Parameters
    ----------
    family : str
        The backward plan's `family`, with or without "-deterministic" at its end.
    dtype : str
        dtype of the operands: "f16", "bf16", "f32" or "f64".
    got : tuple of array_like or torch.Tensor
        ``(dq, dk, dv)``, in any dtype that an output may have.
    exact : tuple of array_like or torch.Tensor
        The result of :func:`attention_backward`.
    score : float, default 0
        As in :func:`assert_close`.
    summands : float, default 0
        Size of the summands of a gradient, if they nearly cancel. For example, dq is 0 in a row
        that sees one key.
    peaked : bool, default False
        True for softmax rows close to one-hot. The rounding of y is then the largest error of a
        16-bit gradient.

    Raises
    ------
    AssertionError
        If a gradient is too far off or not finite.
    InvalidProblemError
        If the family has no kernels of that dtype, or a gradient is missing or of another shape.
    """
    tolerance = _of(GRADIENT_TOLERANCES, family.removesuffix("-deterministic"), dtype)
    allowed = (tolerance.relative + 8 * tolerance.eps * score) * (2.5 if peaked else 1.0)
    floor = 16 * tolerance.eps * summands + (_F16_FLOOR if dtype == "f16" else 0.0)
    for name, gradients in (("got", got), ("exact", exact)):
        if len(gradients) != 3:
            raise InvalidProblemError(f"{name}: got {len(gradients)} gradients, must be 3")
    for name, one, truth in zip(("dq", "dk", "dv"), got, exact, strict=True):
        one, truth = _numpy(one), _numpy(truth)
        _require(bool(np.isfinite(one.astype(np.float64)).all()), f"{name} is not finite")
        error = error_of(one, truth)
        _require(
            error["relative"] <= allowed or error["max"] <= floor,
            f"{family} {dtype}: relative error of {name} {error['relative']:.3e} > {allowed:.3e}, "
            f"at most {error['max']:.3e} > {floor:.3e}",
        )
        _check_largest(f"{family} {dtype}: {name}", allowed, floor, error, truth)
        if one.itemsize == 2 and not (score or peaked):
            what = f"{family} {dtype}: rms error of {name}"
            _check_rounding(what, tolerance, one, truth, dtype)


def rms_over_rounding(y: Any, exact_y: Any, dtype: str) -> float:
    """The error of an answer over the error of rounding the exact answer.

    Parameters
    ----------
    y, exact_y : array_like or torch.Tensor
        An answer and the exact one, of one shape.
    dtype : str
        "f16", "bf16", "f32" or "f64".

    Returns
    -------
    float
        rms error of `y` over the rms error of `exact_y` rounded to `dtype`. If the exact answer
        needs no rounding (one visible key), it is 0 or infinite.

    Raises
    ------
    InvalidProblemError
        If the shapes differ, or there is no such dtype.
    """
    if dtype not in NUMPY_DTYPES:
        raise InvalidProblemError(f"dtype: got {dtype!r}, must be one of {', '.join(NUMPY_DTYPES)}")
    y, exact_y = _numpy(y), _numpy(exact_y)
    error = error_of(y, exact_y)["rms"]
    rounding = error_of(exact_y.astype(NUMPY_DTYPES[dtype]), exact_y)["rms"]
    if rounding == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / rounding


def _check_lse(what: str, tolerance: Tolerance, lse: Any, exact: Any, score: float) -> None:
    wrong = np.isneginf(exact) != np.isneginf(lse)
    _require(not wrong.any(), f"{wrong.sum()} rows differ in whether they see any key")
    seen = ~(np.isneginf(exact) | np.isnan(exact) & np.isnan(lse))
    off = np.abs(lse.astype(np.float64)[seen] - exact[seen])
    # Sums of equal numbers round in one direction: up to 7 eps were seen, and as much in float64's
    # own sums.
    allowed = tolerance.lse + 16 * tolerance.eps * (np.abs(exact[seen]) + score)
    _require(bool((off <= allowed).all()), f"{what}: lse off by {off.max(initial=0):.3e}")


def _check_largest(
    what: str, relative: float, floor: float, error: dict[str, float], exact: Any
) -> None:
    allowed = max(_LARGEST * relative * float(np.max(np.abs(exact), initial=0.0)), floor)
    _require(
        error["max"] <= allowed, f"{what}: one element is off by {error['max']:.3e} > {allowed:.3e}"
    )


def _check_rounding(
    what: str, tolerance: Tolerance | GradientTolerance, got: Any, exact: Any, dtype: str
) -> None:
    if tolerance.over_rounding is None or exact.size < STATISTICAL:
        return
    ratio = rms_over_rounding(got, exact, dtype)
    _require(
        ratio <= tolerance.over_rounding,
        f"{what} is {ratio:.3f}x that of rounding the exact answer, more than "
        f"{tolerance.over_rounding}x",
    )


_T = TypeVar("_T")


def _of(table: dict[tuple[str, str], _T], family: str, dtype: str) -> _T:
    if (family, dtype) not in table:
        known = ", ".join(" ".join(key) for key in table)
        raise InvalidProblemError(f"family, dtype: got {family} {dtype}, must be one of {known}")
    return table[family, dtype]


def _require(holds: bool, message: str) -> None:
    """An `assert` that ``python -O`` does not remove."""
    if not holds:
        raise AssertionError(message)


def _numpy(x: Any) -> np.ndarray:
    if not hasattr(x, "detach"):
        return np.asarray(x)
    x = x.detach().cpu()
    # NumPy does not take PyTorch's bfloat16. float32 holds every bfloat16 exactly.
    array: np.ndarray = (x.float() if x.element_size() == 2 else x).numpy()
    return array
