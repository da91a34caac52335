"""Ring Attention: exact attention over a sequence sharded across a ring."""

from baracuda_kernels import registry
from baracuda_kernels.ops.ring_attention._args import RingAttentionArgs
from baracuda_kernels.ops.ring_attention._backward import (
    RingAttentionBackwardArgs,
    RingAttentionBackwardPlan,
)
from baracuda_kernels.ops.ring_attention._descriptor import RingAttentionDescriptor
from baracuda_kernels.ops.ring_attention._plan import SPEC, RingAttentionPlan

__all__ = [
    "RingAttentionArgs",
    "RingAttentionBackwardArgs",
    "RingAttentionBackwardPlan",
    "RingAttentionDescriptor",
    "RingAttentionPlan",
]

registry.register(SPEC)
