"""Backward calls: NumPy arrays on the host or tensors on a GPU, with every output poisoned."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import baracuda_kernels as bk
from baracuda_kernels.testing import NUMPY_DTYPES, error_of

HOST = bk.Stream.host()
NAMES = ("dq", "dk", "dv")


class Problem(NamedTuple):
    """Operands of a backward call."""

    q: Any
    k: Any
    v: Any
    dy: Any
    dlse: Any = None


def draw(dtype: str, seed: int, *, batch: int = 1, heads: int = 2, kv_heads: int | None = None,
         query_len: int = 32, key_len: int | None = None, head_dim: int = 16, dlse: bool = False,
         logits: float = 1.0) -> Problem:  # fmt: skip
    """Unit normal operands; `logits` multiplies the scores."""
    kv_heads = heads if kv_heads is None else kv_heads
    key_len = query_len if key_len is None else key_len
    random = np.random.default_rng(seed)
    rows, keys = (batch, heads, query_len, head_dim), (batch, kv_heads, key_len, head_dim)
    q, k, v, dy = (random.standard_normal(shape) for shape in (rows, keys, keys, rows))
    q *= logits
    of_lse = random.standard_normal(rows[:3]) if dlse else None
    return Problem(
        *(x.astype(NUMPY_DTYPES[dtype]) for x in (q, k, v, dy)),
        None if of_lse is None else of_lse.astype(accumulator(dtype)),
    )


def accumulator(dtype: str) -> np.dtype:
    return np.dtype(np.float64 if dtype == "f64" else np.float32)


def dtype_of(array: Any) -> str:
    """The dtype of a NumPy array or a torch tensor, such as "bf16"."""
    name = str(array.dtype).rpartition(".")[2]
    return {"bfloat16": "bf16"}.get(name) or f"f{8 * np.dtype(name).itemsize}"


def descriptor(x: Problem, **options: Any) -> bk.FlashSdpaDescriptor:
    (b, h, q, d), (_, hkv, k, _) = x.q.shape, x.k.shape
    return bk.FlashSdpaDescriptor(
        b, h, q, k, d, element=dtype_of(x.q).upper(), num_kv_heads=hkv, **options
    )


def poisoned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.full(shape, np.nan, dtype)


def forward(x: Problem, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """y and lse as the host's forward gives them."""
    y = poisoned(x.q.shape, x.q.dtype)
    lse = poisoned(x.q.shape[:3], accumulator(dtype_of(x.q)))
    plan = bk.FlashSdpaPlan.select(descriptor(x, **options), HOST)
    plan.run(HOST, bk.FlashSdpaArgs(q=x.q, k=x.k, v=x.v, y=y, lse=lse))
    return y, lse


def host_gradients(
    x: Problem, *, wide: bool = False, results: Any = None, **options: Any
) -> tuple[np.ndarray, ...]:
    """dq, dk, dv of the host family; `wide`: dk and dv in the accumulator's type."""
    y, lse = forward(x, **options) if results is None else results
    plan = bk.FlashSdpaBackwardPlan.select(descriptor(x, **options), HOST)
    assert plan.family == "host"
    of_keys = accumulator(dtype_of(x.q)) if wide else x.k.dtype
    dq = poisoned(x.q.shape, x.q.dtype)
    dk, dv = (poisoned(x.k.shape, of_keys) for _ in range(2))
    scratch = np.full(plan.scratch_bytes, 0xFF, np.uint8)  # NaNs
    plan.run(HOST, bk.FlashSdpaBackwardArgs(
        q=x.q, k=x.k, v=x.v, y=y, dy=x.dy, lse=lse, dlse=x.dlse, dq=dq, dk=dk, dv=dv,
        scratch=scratch))  # fmt: skip
    return dq, dk, dv


def errors(got: Any, exact: Any) -> dict[str, float]:
    """Relative error of each gradient."""
    return {
        name: error_of(g, e)["relative"] for name, g, e in zip(NAMES, got, exact, strict=True)
    }
