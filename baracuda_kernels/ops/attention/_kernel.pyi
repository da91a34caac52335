from typing_extensions import disjoint_base

@disjoint_base
class AttentionKernel:
    @property
    def device(self) -> int: ...
