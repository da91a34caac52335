"""Exact attention in float64: the oracle for every kernel.

It is the textbook formula, for one block of query rows of one head at a time, so that memory stays
small at any length. It is slow, needs NumPy alone, and shares no code with the kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from baracuda_kernels._arguments import array, flag, integer, number
from baracuda_kernels.errors import InvalidProblemError

__all__ = ["attention", "attention_backward", "error_of"]

# The most scores in memory: 2**22 float64 values are 32 MiB.
_BLOCK_SCORES = 1 << 22


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    q_positions: np.ndarray | None = None,
    k_positions: np.ndarray | None = None,
    block_scores: int = _BLOCK_SCORES,
) -> tuple[np.ndarray, np.ndarray]:
    """Attention of whole arrays in float64.

    Parameters
    ----------
    q : array_like
        ``[B, H, Q, D]``, any real dtype that NumPy converts to float64 (ml_dtypes too).
    k, v : array_like
        ``[B, Hkv, K, D]`` with ``H % Hkv == 0``; query head ``h`` reads head ``h // (H // Hkv)``.
    scale : float, optional
        Factor on ``q·k``. Default ``1 / sqrt(D)``.
    is_causal : bool, default False
        Row ``i`` sees key ``j`` if and only if ``k_positions[j] <= q_positions[i]``.
    q_positions, k_positions : int array, optional
        Global positions, ``[Q]`` and ``[K]``, in any order. Default ``0, 1, 2, …``. Used only with
        `is_causal`.
    block_scores : int, default 2**22
        The most scores in memory (at least those of one row). It affects only the rounding of the
        result.

    Returns
    -------
    y : numpy.ndarray
        float64 ``[B, H, Q, D]``; 0 in rows that see no key.
    lse : numpy.ndarray
        float64 ``[B, H, Q]``: natural logarithm of the sum of the exponentials of the scaled
        scores; -inf in rows that see no key, NaN where all seen scores are -inf.

    Raises
    ------
    InvalidProblemError
        If the shapes do not fit together, an operand is no array of real numbers, `scale` is no
        number, `is_causal` is no bool, or positions are no integers of 64 bits.
    """
    q, k, v = (_operand(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    group = _check_shapes(q, k, v)
    batch, heads, query_len, head_dim = q.shape
    key_len = k.shape[2]
    scale, is_causal = _factor(scale, head_dim), flag("is_causal", is_causal)
    block_scores = integer("block_scores", block_scores, 1)
    q_pos = _positions_or_range(q_positions, query_len, "q_positions")
    k_pos = _positions_or_range(k_positions, key_len, "k_positions")

    y = np.zeros((batch, heads, query_len, head_dim))
    lse = np.full((batch, heads, query_len), -np.inf)
    if lse.size == 0 or key_len == 0:
        return y, lse

    for b in range(batch):
        for h_kv in range(heads // group):
            k64, v64 = _wide(k[b, h_kv]), _wide(v[b, h_kv])
            # One row at a time if V is not finite: a masked row of V could leak through 0 * inf.
            v_is_finite = bool(np.isfinite(v64).all())
            rows = max(1, block_scores // key_len) if v_is_finite or not is_causal else 1
            for h in range(h_kv * group, (h_kv + 1) * group):
                for i in range(0, query_len, rows):
                    at = slice(i, i + rows)
                    block = _wide(q[b, h, at])
                    mask = k_pos[None, :] <= q_pos[at, None] if is_causal else None
                    y[b, h, at], lse[b, h, at] = _rows(block, k64, v64, scale, mask)
    return y, lse


def attention_backward(
    q: Any,
    k: Any,
    v: Any,
    dy: Any,
    *,
    dlse: Any = None,
    scale: float | None = None,
    is_causal: bool = False,
    q_positions: np.ndarray | None = None,
    k_positions: np.ndarray | None = None,
    block_scores: int = _BLOCK_SCORES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of ``sum(dy * y) + sum(dlse * lse)`` in float64, for y and lse of
    :func:`attention`.

    Parameters
    ----------
    q, k, v, scale, is_causal, q_positions, k_positions, block_scores
        As in :func:`attention`.
    dy : array_like
        ``[B, H, Q, D]``: the gradient of y.
    dlse : array_like, optional
        ``[B, H, Q]``: the gradient of lse. Default zeros.

    Returns
    -------
    dq : numpy.ndarray
        float64 ``[B, H, Q, D]``; 0 in rows that see no key.
    dk, dv : numpy.ndarray
        float64 ``[B, Hkv, K, D]``, summed over the heads of a group; 0 for keys that no row sees.

    Raises
    ------
    InvalidProblemError
        If the shapes do not fit together, an operand is no array of real numbers, `scale` is no
        number, `is_causal` is no bool, or positions are no integers of 64 bits.
    """
    q, k, v, dy = (
        _operand(name, x) for name, x in (("q", q), ("k", k), ("v", v), ("dy", dy))
    )
    group = _check_shapes(q, k, v)
    batch, heads, query_len, head_dim = q.shape
    key_len = k.shape[2]
    if dy.shape != q.shape:
        raise InvalidProblemError(f"dy: got shape {dy.shape}, must be q's, {q.shape}")
    dlse = np.zeros(q.shape[:3]) if dlse is None else _operand("dlse", dlse)
    if dlse.shape != q.shape[:3]:
        raise InvalidProblemError(f"dlse: got shape {dlse.shape}, must be {q.shape[:3]}")
    scale, is_causal = _factor(scale, head_dim), flag("is_causal", is_causal)
    block_scores = integer("block_scores", block_scores, 1)
    q_pos = _positions_or_range(q_positions, query_len, "q_positions")
    k_pos = _positions_or_range(k_positions, key_len, "k_positions")

    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    if dq.size == 0 or dk.size == 0:
        return dq, dk, dv
    q, k, v, dy, dlse = (_wide(x) for x in (q, k, v, dy, dlse))
    # One row at a time if an operand is not finite: a masked pair could leak through 0 * inf.
    finite = all(bool(np.isfinite(x).all()) for x in (q, k, v, dy, dlse))
    rows = max(1, block_scores // key_len) if finite or not is_causal else 1
    for b in range(batch):
        for h in range(heads):
            kv = h // group
            for i in range(0, query_len, rows):
                at = slice(i, i + rows)
                mask = (
                    k_pos[None, :] <= q_pos[at, None]
                    if is_causal
                    else np.ones((len(q_pos[at]), key_len), bool)
                )
                seen = mask.any(axis=0)
                if not seen.any():
                    continue
                dq[b, h, at], d_keys, d_values = _row_gradients(
                    q[b, h, at], k[b, kv, seen], v[b, kv, seen], dy[b, h, at], dlse[b, h, at],
                    scale, mask[:, seen],
                )  # fmt: skip
                with np.errstate(invalid="ignore"):
                    dk[b, kv, seen] += d_keys
                    dv[b, kv, seen] += d_values
    return dq, dk, dv


def error_of(got: Any, exact: np.ndarray) -> dict[str, float]:
    """The error of a result against the exact one, in float64.

    Parameters
    ----------
    got : array
        Any shape and real dtype; converted to float64.
    exact : numpy.ndarray
        float64, of the same shape.

    Returns
    -------
    dict
        ``rms`` and ``max`` of the difference, and ``relative``, the norm of the difference over the
        norm of `exact`. Equal infinities have no difference; any other non-finite difference is
        inf.

    Raises
    ------
    InvalidProblemError
        The shapes differ, or one is no array of real numbers.
    """
    got, exact = _wide(_operand("got", got)), _wide(_operand("exact", exact))
    if got.shape != exact.shape:
        raise InvalidProblemError(f"got: got shape {got.shape}, must be exact's, {exact.shape}")
    if got.size == 0:
        return {"rms": 0.0, "max": 0.0, "relative": 0.0}
    same = got == exact
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, got - exact)
        difference[~np.isfinite(difference)] = np.inf
        rms = _rms(difference)
        size = _rms(np.where(np.isfinite(exact), exact, 0.0))
    return {
        "rms": rms,
        "max": float(np.max(np.abs(difference))),
        "relative": rms / size if size > 0 else (0.0 if rms == 0 else math.inf),
    }


def _rms(x: np.ndarray) -> float:
    """The root of the mean square, which overflows only if the largest element does."""
    largest = float(np.max(np.abs(x)))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.mean(np.square(x / largest))))


def _operand(name: str, x: Any) -> np.ndarray:
    """The operand as a NumPy array. What float64 cannot hold, as the imaginary part of a complex
    number, would be dropped in silence."""
    x = array(name, x)
    try:
        read = np.asarray(x)
    except (TypeError, RuntimeError) as error:  # a tensor of a dtype or a kind that NumPy lacks
        raise InvalidProblemError(
            f"{name}: got {type(x).__name__} of {x.dtype}, must be an array that NumPy reads "
            f"({error})"
        ) from error
    # Of kind V are ml_dtypes' numbers, too.
    if read.dtype.kind in "cSUmMO" or issubclass(read.dtype.type, np.void):
        raise InvalidProblemError(f"{name}: got dtype {read.dtype}, must be of real numbers")
    return read


def _factor(scale: Any, head_dim: int) -> float:
    """The factor on the scores."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim) if head_dim else 1.0
    return number("scale", scale)


def _wide(x: np.ndarray) -> np.ndarray:
    # Signalling NaNs are legal inputs.
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64)


def _rows(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    if mask is not None:
        # Keys that none of these rows sees are left out, since they may be NaN.
        seen = mask.any(axis=0)
        k, v, mask = k[seen], v[seen], mask[:, seen]
    if k.shape[0] == 0:
        return np.zeros((q.shape[0], v.shape[1])), np.full(q.shape[0], -np.inf)
    # NaN and Inf are legal operands: they follow IEEE arithmetic.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scores = (q @ k.T) * scale
        if mask is not None:
            scores = np.where(mask, scores, -np.inf)
        top = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
        total = weights.sum(axis=1, keepdims=True)
        y = np.divide(weights @ v, total)
        lse = (top + np.log(total))[:, 0]
    lse[np.isneginf(top[:, 0])] = np.nan  # as y: 0 / 0, which is not a row without keys
    if mask is not None:
        blind = ~mask.any(axis=1)
        y[blind] = 0.0
        lse[blind] = -np.inf
    return y, lse


def _row_gradients(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, dy: np.ndarray, dlse: np.ndarray, scale: float,
    mask: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    sees = mask.any(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scores = np.where(mask, (q @ k.T) * scale, -np.inf)
        top = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - np.where(sees, top, 0.0))
        weights /= np.where(sees, weights.sum(axis=1, keepdims=True), 1.0)
        d_weights = dy @ v.T
        # Keys that a row does not see are left out: they may be NaN.
        mean = np.where(mask, weights * d_weights, 0.0).sum(axis=1) - dlse
        d_scores = np.where(mask, weights * (d_weights - mean[:, None]), 0.0)
        return (d_scores @ k) * scale, (d_scores.T @ q) * scale, weights.T @ dy


def _check_shapes(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> int:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise InvalidProblemError(f"{name}: got shape {x.shape}, must be [B, H, S, D]")
    if k.shape != v.shape:
        raise InvalidProblemError(f"k, v: got shapes {k.shape} and {v.shape}, must be equal")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise InvalidProblemError(
            f"q, k: got shapes {q.shape} and {k.shape}, must have equal batch and head_dim"
        )
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads == 0:
        return 1
    if kv_heads == 0 or heads % kv_heads:
        raise InvalidProblemError(
            f"q, k: got {heads} and {kv_heads} heads, must be a multiple of k's"
        )
    return int(heads // kv_heads)


def _positions_or_range(given: np.ndarray | None, length: int, name: str) -> np.ndarray:
    if given is None:
        return np.arange(length, dtype=np.int64)
    try:
        given = np.asarray(given)
    except ValueError:  # lists of several lengths
        raise InvalidProblemError(f"{name}: got {given!r}, must be {length} integers") from None
    if given.shape != (length,) or given.dtype.kind not in "iu":
        raise InvalidProblemError(
            f"{name}: got shape {given.shape} and dtype {given.dtype}, must be {length} integers"
        )
    if given.size and given.max() > np.iinfo(np.int64).max:
        raise InvalidProblemError(f"{name}: got {given.max()}, must be integers below 2**63")
    return given.astype(np.int64)
