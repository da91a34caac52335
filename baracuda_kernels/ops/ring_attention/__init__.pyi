from baracuda_kernels.ops.ring_attention._args import RingAttentionArgs
from baracuda_kernels.ops.ring_attention._backward import (
    RingAttentionBackwardArgs,
    RingAttentionBackwardPlan,
)
from baracuda_kernels.ops.ring_attention._descriptor import RingAttentionDescriptor
from baracuda_kernels.ops.ring_attention._plan import RingAttentionPlan

__all__ = [
    "RingAttentionArgs",
    "RingAttentionBackwardArgs",
    "RingAttentionBackwardPlan",
    "RingAttentionDescriptor",
    "RingAttentionPlan",
]
