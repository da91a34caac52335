from typing import Any, Self

from typing_extensions import disjoint_base

from baracuda_kernels._core._enums import ElementKind, SequenceLayout
from baracuda_kernels.ops.attention._descriptor import AttentionDescriptor

@disjoint_base
class RingAttentionDescriptor(AttentionDescriptor):
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
        sequence_layout: SequenceLayout | str = SequenceLayout.CONTIGUOUS,
    ) -> Self: ...
    @property
    def sequence_layout(self) -> SequenceLayout: ...
