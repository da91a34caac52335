"""Random inputs, by name of their distribution, for NumPy and for torch on a GPU.

normal        unit normal: what attention sees after normalisation
heavy         Student's t with 4 degrees of freedom: heavy tails everywhere
outliers      unit normal, and one element in a thousand with a deviation of 10 on top
large_logits  unit normal times 8 in q and k: softmax rows close to one-hot
"""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.tolerances import NUMPY_DTYPES

DISTRIBUTIONS = ("normal", "heavy", "outliers", "large_logits")
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
    """q [B,H,Q,D] and k, v [B,Hkv,K,D] as NumPy arrays."""
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
    """The same as torch tensors, drawn on the device."""
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


def _numpy_draw(
    random: np.random.Generator, distribution: str, shape: tuple[int, ...]
) -> np.ndarray:
    if distribution == "heavy":
        return random.standard_t(4, shape)
    x = random.standard_normal(shape)
    if distribution == "outliers":
        x += 10 * (random.random(shape) < 1e-3) * random.standard_normal(shape)
    return x
