"""Ring Attention on PyTorch tensors and process groups, with gradients.

``ring_attention`` attends over a sequence whose shards lie on the ranks of a process group;
``shard``, ``unshard`` and ``position_ids`` deal the sequence out; ``context_parallel`` puts the
ring under an unmodified model's ``scaled_dot_product_attention``. All but ``position_ids`` carry
gradients. ``synchronize`` waits for the device, but not for a rank that has died.
"""

from baracuda_kernels.interop.torch._context import context_parallel
from baracuda_kernels.interop.torch._op import ring_attention
from baracuda_kernels.interop.torch._ring import clear_cache
from baracuda_kernels.interop.torch._sharding import position_ids, shard, unshard
from baracuda_kernels.interop.torch._waiting import synchronize

__all__ = [
    "clear_cache",
    "context_parallel",
    "position_ids",
    "ring_attention",
    "shard",
    "synchronize",
    "unshard",
]
