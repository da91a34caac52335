from typing import Any, Self

from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels.ops.attention._descriptor import AttentionDescriptor

class FlashSdpaDescriptor(AttentionDescriptor):
    def __new__(
        cls,
        batch_size: int,
        num_heads: int,
        query_len: int,
        key_len: int,
        head_dim: int,
        scale: float | None = None,
        is_causal: bool = False,
        element: Any = ElementKind.F32,  # or a dtype
        *,
        num_kv_heads: int | None = None,
    ) -> Self: ...
