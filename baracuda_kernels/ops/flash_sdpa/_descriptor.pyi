from typing import Self

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
        element: ElementKind | str = ElementKind.F32,
        *,
        num_kv_heads: int | None = None,
    ) -> Self: ...
