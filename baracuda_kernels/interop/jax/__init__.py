"""Ring Attention inside ``jax.jit`` and ``jax.shard_map``.

The step is a custom call that XLA runs on its own stream; K and V go around by ``lax.ppermute``, so
XLA owns the communication and no second communicator exists. On the CPU and on CUDA devices.
Needs JAX 0.9 or later. Gradients in reverse mode, of first order.
"""

from baracuda_kernels.interop.jax._op import attention_step, ring_attention, sequence_order

__all__ = ["attention_step", "ring_attention", "sequence_order"]
