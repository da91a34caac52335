from typing import Any, Self

from typing_extensions import disjoint_base

from baracuda_kernels._core._ring_plan import RingArgs
from baracuda_kernels._core._tensor import TensorRef

@disjoint_base
class RingAttentionArgs(RingArgs):
    def __new__(
        cls,
        *,
        q: Any,
        y: Any,
        kv_scratch_a: Any = None,
        kv_scratch_b: Any = None,
        accumulator_scratch: Any = None,
        lse: Any = None,
        k: Any = None,
        v: Any = None,
    ) -> Self: ...
    @property
    def q(self) -> TensorRef: ...
    @property
    def y(self) -> TensorRef: ...
    @property
    def kv_scratch_a(self) -> TensorRef | None: ...
    @property
    def kv_scratch_b(self) -> TensorRef | None: ...
    @property
    def accumulator_scratch(self) -> TensorRef | None: ...
    @property
    def lse(self) -> TensorRef | None: ...
    @property
    def k(self) -> TensorRef | None: ...
    @property
    def v(self) -> TensorRef | None: ...
