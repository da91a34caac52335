"""A single call of attention and its gradients, as the problems of several measurements."""

from __future__ import annotations

from typing import Any, NamedTuple

import baracuda_kernels as bk
from baracuda_kernels.testing import preference, torch_qkv


class Call(NamedTuple):
    """One call of a family; as many keys as queries."""

    family: str
    dtype: str
    head_dim: int
    batch: int
    heads: int
    kv_heads: int
    length: int

    @property
    def shape(self) -> dict[str, int]:
        """For inputs, and for a row's params."""
        return {
            "batch": self.batch, "heads": self.heads, "kv_heads": self.kv_heads,
            "query_len": self.length, "key_len": self.length, "head_dim": self.head_dim,
        }  # fmt: skip

    def params(self, causal: bool) -> dict[str, Any]:
        """Of a row."""
        return {"family": self.family, "dtype": self.dtype, **self.shape, "causal": causal}

    def descriptor(self, causal: bool) -> bk.FlashSdpaDescriptor:
        return bk.FlashSdpaDescriptor(
            self.batch, self.heads, self.length, self.length, self.head_dim, is_causal=causal,
            element=bk.ElementKind.parse(self.dtype), num_kv_heads=self.kv_heads,
        )  # fmt: skip

    def preference(self, deterministic: bool | None = None) -> bk.PlanPreference:
        """What only the family meets."""
        plain = preference(self.family, self.dtype)
        return bk.PlanPreference(
            allow_sm90a=plain.allow_sm90a, math_precision=plain.math_precision,
            deterministic=deterministic,
        )  # fmt: skip

    def qkv(self, seed: int) -> tuple[Any, Any, Any]:
        """Random inputs on the GPU."""
        return torch_qkv("normal", self.dtype, seed, **self.shape)

    def nbytes(self, arrays_of_heads: int, arrays_of_kv_heads: int) -> int:
        """Of arrays with the heads of Q, and with those of K."""
        heads = arrays_of_heads * self.heads + arrays_of_kv_heads * self.kv_heads
        itemsize = bk.ElementKind.parse(self.dtype).itemsize
        return self.batch * self.length * self.head_dim * heads * itemsize
