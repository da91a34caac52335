"""Random inputs, by the name of their distribution, as NumPy arrays or PyTorch tensors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from baracuda_kernels.errors import InvalidProblemError

DISTRIBUTIONS = ("normal", "heavy", "outliers", "large_logits")
# By the names of element kinds.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
TORCH_DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}


def numpy_qkv(
    distribution: str,
    dtype: str,
    seed: int,
    *,
    batch: int = 1,
    heads: int,
    kv_heads: int | None = None,
    query_len: int,
    key_len: int | None = None,
    head_dim: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random q, k and v as NumPy arrays.

    Parameters
    ----------
    distribution : str
        One of ``DISTRIBUTIONS``. "normal": unit normal. "heavy": Student's t with 4 degrees of
        freedom. "outliers": unit normal; one element in a thousand gets a second, normal value of
        standard deviation 10 added.
        "large_logits": unit normal, q and k times 8, so that softmax rows are nearly one-hot.
    dtype : str
        "f16", "bf16", "f32" or "f64".
    seed : int
        The same seed gives the same arrays.
    batch : int, default 1
    heads : int
    kv_heads : int, optional
        Default `heads`.
    query_len : int
    key_len : int, optional
        Default `query_len`.
    head_dim : int

    Returns
    -------
    tuple of numpy.ndarray
        q ``[batch, heads, query_len, head_dim]``, k and v ``[batch, kv_heads, key_len, head_dim]``.

    Raises
    ------
    InvalidProblemError
        If there is no such distribution or dtype.
    """
    _check(distribution, dtype)
    kv_heads = heads if kv_heads is None else kv_heads
    key_len = query_len if key_len is None else key_len
    random = np.random.default_rng(seed)
    shapes = ((batch, heads, query_len, head_dim), *[(batch, kv_heads, key_len, head_dim)] * 2)
    arrays = [_numpy_draw(random, distribution, shape) for shape in shapes]
    if distribution == "large_logits":
        arrays = [arrays[0] * 8, arrays[1] * 8, arrays[2]]
    q, k, v = (x.astype(NUMPY_DTYPES[dtype]) for x in arrays)
    return q, k, v


def torch_qkv(
    distribution: str,
    dtype: str,
    seed: int,
    *,
    batch: int = 1,
    heads: int,
    kv_heads: int | None = None,
    query_len: int,
    key_len: int | None = None,
    head_dim: int,
    device: str = "cuda",
) -> tuple[Any, Any, Any]:
    """Random q, k and v as tensors of PyTorch, drawn on their device.

    The values differ from those of :func:`numpy_qkv` for the same seed.

    Parameters
    ----------
    distribution, dtype, seed, batch, heads, kv_heads, query_len, key_len, head_dim
        As for :func:`numpy_qkv`.
    device : str, default "cuda"
        Any device of PyTorch.

    Returns
    -------
    tuple of torch.Tensor
        q, k and v, in the shapes of :func:`numpy_qkv`.

    Raises
    ------
    InvalidProblemError
        As :func:`numpy_qkv`.
    """
    _check(distribution, dtype)
    import torch

    kv_heads = heads if kv_heads is None else kv_heads
    key_len = query_len if key_len is None else key_len
    random = torch.Generator(device=device).manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Any:
        x = torch.randn(shape, generator=random, device=device)
        if distribution == "heavy":
            chi = torch.randn((4, *shape), generator=random, device=device).square().sum(0)
            x = x / (chi / 4).sqrt()
        elif distribution == "outliers":
            hit = torch.rand(shape, generator=random, device=device) < 1e-3
            x = x + 10 * hit * torch.randn(shape, generator=random, device=device)
        return x

    q = draw((batch, heads, query_len, head_dim))
    k, v = (draw((batch, kv_heads, key_len, head_dim)) for _ in range(2))
    if distribution == "large_logits":
        q, k = q * 8, k * 8
    q, k, v = (x.to(getattr(torch, TORCH_DTYPES[dtype])) for x in (q, k, v))
    return q, k, v


def _check(distribution: str, dtype: str) -> None:
    if distribution not in DISTRIBUTIONS:
        raise InvalidProblemError(
            f"distribution: got {distribution!r}, must be one of {', '.join(DISTRIBUTIONS)}"
        )
    if dtype not in NUMPY_DTYPES:
        raise InvalidProblemError(f"dtype: got {dtype!r}, must be one of {', '.join(NUMPY_DTYPES)}")


def _numpy_draw(
    random: np.random.Generator, distribution: str, shape: tuple[int, ...]
) -> np.ndarray:
    if distribution == "heavy":
        return random.standard_t(4, shape)
    x = random.standard_normal(shape)
    if distribution == "outliers":
        x += 10 * (random.random(shape) < 1e-3) * random.standard_normal(shape)
    return x
