from collections.abc import Sequence
from typing import Any

from baracuda_kernels._core._enums import Direction
from baracuda_kernels.ops.ring_attention._descriptor import RingAttentionDescriptor

MESSAGE_BYTES: int

def encode(
    descriptor: RingAttentionDescriptor,
    direction: Direction,
    args: Any = None,
    rank: int | None = None,
) -> bytes: ...
def orders(descriptor: RingAttentionDescriptor, args: Any) -> dict[str, str]: ...
def require(world_size: int, messages: Sequence[bytes]) -> None: ...
