"""NaN and Inf in Q and K, and the rows of the result that they must reach."""

from __future__ import annotations

import numpy as np

from baracuda_kernels.testing import attention

LENGTH = 48
# Row or key that is spoilt, of LENGTH, and with what: the whole row, or one element of it.
SPOILT = {
    "nan in a key": ("k", 30, slice(None), np.nan),
    "nan in a query": ("q", 7, slice(None), np.nan),
    "+inf in a key": ("k", 12, 3, np.inf),
    "-inf in a query": ("q", 0, 2, -np.inf),
    "+inf in the first key": ("k", 0, 5, np.inf),
    "inf in every element of a query": ("q", 40, slice(None), np.inf),
}


def problem(kind: str, dtype=np.float64, length: int = LENGTH):
    """(q, k, v) with the fault in head 0, and the rows of the exact answer that are NaN."""
    rng = np.random.default_rng()
    arrays = {name: rng.standard_normal((1, 2, length, 64)).astype(dtype) for name in "qkv"}
    name, row, column, value = SPOILT[kind]
    arrays[name][0, 0, row * length // LENGTH, column] = value
    q, k, v = arrays.values()
    with np.errstate(invalid="ignore"):
        exact, _ = attention(q, k, v, is_causal=True)
    return (q, k, v), np.isnan(exact).any(-1)


def check(kind: str, y: np.ndarray, spoilt: np.ndarray) -> None:
    y = np.asarray(y, np.float64)
    got = np.isnan(y).any(-1)
    assert np.array_equal(got, spoilt), (
        f"{kind}: rows {np.flatnonzero(got[0, 0])} are NaN, must be {np.flatnonzero(spoilt[0, 0])}"
    )
    assert not np.isinf(y).any()
