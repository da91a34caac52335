"""Ring Attention on PyTorch tensors and process groups, with gradients.

``ring_attention`` attends over a sequence whose shards are on the ranks of a process group. ``shard``,
``unshard`` and ``position_ids`` cut and gather the sequence. ``context_parallel`` uses the ring for the
``scaled_dot_product_attention`` of an unmodified model. All of them but ``position_ids`` have
gradients. ``synchronize`` waits for the device, and raises if another rank has died.
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
