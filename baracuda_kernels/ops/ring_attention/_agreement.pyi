from collections.abc import Sequence

from baracuda_kernels.ops.ring_attention._args import RingAttentionArgs
from baracuda_kernels.ops.ring_attention._descriptor import RingAttentionDescriptor

MESSAGE_BYTES: int

def encode(
    descriptor: RingAttentionDescriptor, args: RingAttentionArgs | None = None
) -> bytes: ...
def require(world_size: int, messages: Sequence[bytes]) -> None: ...
