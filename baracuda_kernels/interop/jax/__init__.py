"""Ring Attention inside ``jax.jit`` and ``jax.shard_map``.

A step is a custom call that XLA runs on its own stream. ``lax.ppermute`` sends K and V, so XLA owns
the communication and there is no second communicator. The adapter runs on the CPU and on CUDA
devices, and needs JAX 0.9 or later. It has gradients of first order, in reverse mode.
"""

from baracuda_kernels.interop.jax._op import attention_step, ring_attention, sequence_order

__all__ = ["attention_step", "ring_attention", "sequence_order"]
