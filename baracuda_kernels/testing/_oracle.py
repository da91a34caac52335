"""The oracle: attention in float64.

NumPy arrays are computed by `baracuda_kernels.reference`. PyTorch tensors are computed by the same
formula in PyTorch, on their device, since long sequences would take NumPy hours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from baracuda_kernels import reference
from baracuda_kernels._arguments import flag, library_of
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.reference import _check_shapes, _factor, _positions_or_range, error_of

__all__ = ["attention", "attention_backward", "error_of", "max_score"]

_BLOCK_SCORES = 1 << 25


def attention(q: Any, k: Any, v: Any, **options: Any) -> tuple[Any, Any]:
    """Exact attention in float64.

    Parameters
    ----------
    q : array_like or torch.Tensor
        ``[B, H, Q, D]``, any real dtype.
    k, v : array_like or torch.Tensor
        ``[B, Hkv, K, D]`` with ``H % Hkv == 0``.
    options
        `scale`, `is_causal`, `q_positions` and `k_positions`, as in
        :func:`baracuda_kernels.reference.attention`.

    Returns
    -------
    tuple
        ``(y, lse)``, ``[B, H, Q, D]`` and ``[B, H, Q]`` in float64: NumPy arrays, or tensors on the
        device of `q`.

    Raises
    ------
    InvalidProblemError
        As :func:`baracuda_kernels.reference.attention`.
    """
    if library_of(q) == "torch":
        _check_tensors(q, k=k, v=v)
        _check_shapes(q, k, v)
        return _torch_attention(q, k, v, **options)
    return reference.attention(q, k, v, **options)


def attention_backward(q: Any, k: Any, v: Any, dy: Any, **options: Any) -> tuple[Any, Any, Any]:
    """Exact gradients of attention in float64.

    Parameters
    ----------
    q, k, v : array_like or torch.Tensor
        As in :func:`attention`. Tensors of PyTorch must be finite, here and below; NumPy arrays
        need not be.
    dy : array_like or torch.Tensor
        ``[B, H, Q, D]``, the gradient of y.
    options
        `dlse`, `scale`, `is_causal`, `q_positions` and `k_positions`, as in
        :func:`baracuda_kernels.reference.attention_backward`.

    Returns
    -------
    tuple
        ``(dq, dk, dv)``, of the shapes of q, k and v, in float64.

    Raises
    ------
    InvalidProblemError
        As :func:`baracuda_kernels.reference.attention`, or if a tensor of PyTorch is not finite.
    """
    if library_of(q) == "torch":
        dlse = options.get("dlse")
        given = {"k": k, "v": v, "dy": dy} | ({} if dlse is None else {"dlse": dlse})
        _check_tensors(q, **given)
        _check_shapes(q, k, v)
        for name, x, shape in (("dy", dy, q.shape), ("dlse", dlse, q.shape[:3])):
            if x is not None and x.shape != shape:
                raise InvalidProblemError(
                    f"{name}: got shape {tuple(x.shape)}, must be {tuple(shape)}"
                )
        for name, x in (("q", q), *given.items()):
            if not bool(x.isfinite().all()):
                raise InvalidProblemError(f"{name}: got a tensor with NaN or Inf, must be finite")
        return _torch_backward(q, k, v, dy, **options)
    return reference.attention_backward(q, k, v, dy, **options)


def max_score(q: np.ndarray, k: np.ndarray, scale: float | None) -> float:
    """An upper bound of the scaled scores. The relative error of an exponential grows with it.

    Parameters
    ----------
    q, k : numpy.ndarray
        ``[B, H, Q, D]`` and ``[B, Hkv, K, D]``.
    scale : float or None
        Factor on the scores; None: ``1 / sqrt(D)``.

    Returns
    -------
    float
        The largest norm of a row of `q`, times that of `k`, times ``abs(scale)``.

    Raises
    ------
    InvalidProblemError
        If the rows of `q` and `k` have different lengths.
    """
    if q.shape[-1] != k.shape[-1]:
        raise InvalidProblemError(f"k: got rows of {k.shape[-1]}, must be of q's {q.shape[-1]}")
    if q.size == 0 or k.size == 0:
        return 0.0
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else abs(scale)
    q_norm = np.linalg.norm(np.asarray(q, dtype=np.float64), axis=-1).max()
    k_norm = np.linalg.norm(np.asarray(k, dtype=np.float64), axis=-1).max()
    return float(factor * q_norm * k_norm)


def _torch_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    q_positions: Any = None,
    k_positions: Any = None,
) -> tuple[Any, Any]:
    import torch

    batch, heads, query_len, head_dim = q.shape
    kv_heads, key_len = k.shape[1], k.shape[2]
    group = heads // max(kv_heads, 1)
    scale, is_causal = _factor(scale, head_dim), flag("is_causal", is_causal)
    q_pos = _torch_positions(q_positions, query_len, "q_positions", q.device)
    k_pos = _torch_positions(k_positions, key_len, "k_positions", q.device)
    y = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    lse = torch.full(q.shape[:3], -math.inf, dtype=torch.float64, device=q.device)
    if lse.numel() == 0 or key_len == 0:
        return y, lse
    rows = max(1, _BLOCK_SCORES // key_len)
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h // group].double(), v[b, h // group].double()
            # A masked row of V that is not finite would leak through 0 * inf in the product.
            odd = (~values.isfinite().all(dim=1)).nonzero().flatten().tolist()
            finite = values
            if odd:
                finite = values.clone()
                finite[odd] = 0.0
            for i in range(0, query_len, rows):
                at = slice(i, i + rows)
                scores = (q[b, h, at].double() @ keys.T) * scale
                hidden = None
                if is_causal:
                    hidden = k_pos[None, :] > q_pos[at, None]
                    scores.masked_fill_(hidden, -math.inf)
                top = scores.amax(dim=1, keepdim=True)
                weights = torch.exp(scores - top.masked_fill(top == -math.inf, 0.0))
                total = weights.sum(dim=1, keepdim=True)
                sums = weights @ finite
                for j in odd:
                    part = weights[:, j, None] * values[j]
                    sums += part if hidden is None else part.masked_fill(hidden[:, j, None], 0.0)
                y[b, h, at] = sums / total
                # All seen scores are -inf: NaN, as y. Rows without keys come below.
                log_sum = (top + total.log())[:, 0]
                lse[b, h, at] = log_sum.masked_fill(top[:, 0] == -math.inf, math.nan)
                if hidden is not None:
                    blind = hidden.all(dim=1)
                    y[b, h, at][blind], lse[b, h, at][blind] = 0.0, -math.inf
    return y, lse


def _torch_backward(
    q: Any,
    k: Any,
    v: Any,
    dy: Any,
    *,
    dlse: Any = None,
    scale: float | None = None,
    is_causal: bool = False,
    q_positions: Any = None,
    k_positions: Any = None,
) -> tuple[Any, Any, Any]:
    """The gradients of finite operands."""
    import torch

    batch, heads, query_len, head_dim = q.shape
    key_len, group = k.shape[2], heads // max(k.shape[1], 1)
    scale, is_causal = _factor(scale, head_dim), flag("is_causal", is_causal)
    q_pos = _torch_positions(q_positions, query_len, "q_positions", q.device)
    k_pos = _torch_positions(k_positions, key_len, "k_positions", q.device)
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float64) for x in (q, k, v))
    if dq.numel() == 0 or dk.numel() == 0:
        return dq, dk, dv
    rows = max(1, _BLOCK_SCORES // key_len)
    for b, h in ((b, h) for b in range(batch) for h in range(heads)):
        keys, values = k[b, h // group].double(), v[b, h // group].double()
        for i in range(0, query_len, rows):
            at = slice(i, min(i + rows, query_len))
            queries, dys = q[b, h, at].double(), dy[b, h, at].double()
            scores = (queries @ keys.T) * scale
            if is_causal:
                scores.masked_fill_(k_pos[None, :] > q_pos[at, None], -math.inf)
            weights = torch.softmax(scores, dim=1)
            weights[(scores == -math.inf).all(dim=1)] = 0.0  # rows that see no key
            d_weights = dys @ values.T
            mean = (weights * d_weights).sum(1, keepdim=True)
            if dlse is not None:
                mean = mean - dlse[b, h, at].double()[:, None]
            d_scores = weights * (d_weights - mean)
            dq[b, h, at] = (d_scores @ keys) * scale
            dk[b, h // group] += (d_scores.T @ queries) * scale
            dv[b, h // group] += weights.T @ dys
    return dq, dk, dv


def _torch_positions(given: Any, length: int, name: str, device: Any) -> Any:
    import torch

    if isinstance(given, torch.Tensor):
        given = given.cpu().numpy()
    return torch.as_tensor(_positions_or_range(given, length, name), device=device)


def _check_tensors(q: Any, **others: Any) -> None:
    for name, x in (("q", q), *others.items()):
        if library_of(x) == "torch" and x.is_complex():
            raise InvalidProblemError(f"{name}: got {x.dtype}, must be of real numbers")
    for name, x in others.items():
        if library_of(x) != "torch" or x.device != q.device:
            where = f" on {x.device}" if library_of(x) == "torch" else ""
            raise InvalidProblemError(
                f"{name}: got {type(x).__name__}{where}, must be a tensor on q's device, {q.device}"
            )
