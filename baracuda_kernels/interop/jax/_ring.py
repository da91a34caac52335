"""The unrolled steps of a ring, forward and backward, and the gradient rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from baracuda_kernels import RingAttentionDescriptor
from baracuda_kernels.interop.jax import _backward, _step
from baracuda_kernels.interop.jax._axes import Spec, over_parts
from baracuda_kernels.interop.jax._order import once_only
from baracuda_kernels.ops.attention import _positions

# The name of y and lse for a policy of jax.checkpoint.
CHECKPOINT_NAME = "ring_attention"


@dataclass(frozen=True)
class Ring:
    """The parameters of a call that are not arrays."""

    descriptor: RingAttentionDescriptor  # of one device's rows
    axis_name: Any
    axes: Any  # in the mesh's order
    devices: tuple[int, ...]  # each rank's, counted in that order
    sequence_dim: int
    sm_margin: int
    return_lse: bool
    deterministic: bool
    spec: Spec  # the explicit mesh axes that shard batch and heads

    @property
    def world_size(self) -> int:
        return len(self.devices)

    def of_part(self, q: jax.Array, k: jax.Array) -> Ring:
        """The ring for one device's part of batch and heads."""
        heads = 3 - self.sequence_dim
        fields = {
            **self.descriptor.to_dict(),
            "batch_size": q.shape[0],
            "num_heads": q.shape[heads],
            "num_kv_heads": k.shape[heads],
        }
        return replace(self, descriptor=RingAttentionDescriptor.from_dict(fields), spec=())

    def over_parts(
        self, compute: Callable[..., Any], arrays: Sequence[jax.Array], results: Sequence[int]
    ) -> Any:
        """``compute(ring, rank, *arrays)`` on each device's part of batch and heads; see
        :mod:`_axes`."""

        def of_part(rank: jax.Array, *parts: jax.Array) -> Any:
            return compute(self.of_part(*parts[:2]), rank, *parts)

        arrays = (self.rank(), *arrays)
        return over_parts(of_part, arrays, results, self.spec, self.axis_name, self.sequence_dim)

    def rank(self) -> jax.Array:
        """This device's rank, or 0 if the mask needs no positions: JAX 0.9 has no rank within
        parts."""
        if self.world_size > 1 and self.descriptor.is_causal:
            return lax.axis_index(self.axis_name)
        return jnp.zeros((), jnp.int32)

    def to_next(self, x: jax.Array) -> jax.Array:
        """Send each device's array to the next device."""
        following = (*self.devices[1:], self.devices[0])
        pairs = list(zip(self.devices, following, strict=True))
        received: jax.Array = lax.ppermute(x, self.axes, pairs)
        return received

    def maps(self, rank: Any, step: int) -> list[jax.Array]:
        """The position maps as an operand, if the mask needs them."""
        if not self.descriptor.is_causal:
            return []
        origin = (rank - step) % self.world_size
        return [position_maps(self.descriptor, self.world_size, rank, origin)]


def position_maps(
    descriptor: RingAttentionDescriptor, world_size: int, rank: Any, origin: Any
) -> jax.Array:
    """The position maps of both shards as the kernel reads them: 8 int64, as 16 words of 32
    bits."""

    def of(length: int, who: Any) -> jax.Array:
        table = _positions.layout_maps(descriptor.sequence_layout, world_size, length)
        words = np.frombuffer(table, np.uint32).reshape(world_size, 8)
        row: jax.Array = lax.dynamic_index_in_dim(jnp.asarray(words), who, keepdims=False)
        return row

    return jnp.concatenate([of(descriptor.query_len, rank), of(descriptor.key_len, origin)])


# Compiled as a whole if no jit is around it.
@partial(jax.jit, static_argnames=("ring", "gradient"), inline=True)
def forward(
    ring: Ring, rank: Any, q: jax.Array, k: jax.Array, v: jax.Array, gradient: str = "none"
) -> tuple[jax.Array, jax.Array]:
    """y and lse [B, H, Q], by P steps and P - 1 exchanges of K and V."""
    state: list[jax.Array] = []
    k_next, v_next = k, v
    for step in range(ring.world_size):
        last = step == ring.world_size - 1
        k, v = k_next, v_next
        if not last:
            # The exchange comes before the step in the program, and does not depend on it. So XLA
            # may overlap the two.
            k_next, v_next = ring.to_next(k), ring.to_next(v)
        state = _step.bind(
            q,
            k,
            v,
            *ring.maps(rank, step),
            *state,
            descriptor=ring.descriptor,
            first=step == 0,
            last=last,
            sequence_dim=ring.sequence_dim,
            sm_margin=0 if last else ring.sm_margin,
            gradient=gradient,
        )
    y, lse = state
    return y, lse[..., 0]


@partial(jax.jit, static_argnames="ring", inline=True)
def backward(
    ring: Ring, rank: Any, q: jax.Array, k: jax.Array, v: jax.Array, y: jax.Array, lse: jax.Array,
    dy: jax.Array, dlse: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """dq, dk and dv. K and V travel as in the forward, the sums of dk and dv one step later.

    Step 0 computes the device's own chunk, and its share of dk and dv stays on the device. The sum
    of the other devices' shares begins in step 1, travels in the accumulator's type, and arrives
    after the last step.
    """
    size = ring.world_size
    rows = [y, lse[..., None], *([] if dlse is None else [dlse[..., None]])]
    kept: list[jax.Array] = []
    own: list[jax.Array] = []
    travelling: list[jax.Array] = []
    dq: jax.Array | None = None
    k_next, v_next = k, v
    for step in range(size):
        last = step == size - 1
        k_here, v_here = k_next, v_next
        if not last:
            k_next, v_next = ring.to_next(k_here), ring.to_next(v_here)
        received = [ring.to_next(x) for x in travelling]
        scratch, *shares = _backward.bind(
            q,
            k_here,
            v_here,
            dy,
            *ring.maps(rank, step),
            *(kept if step else rows),
            descriptor=ring.descriptor,
            first=step == 0,
            last=last,
            has_dlse=dlse is not None,
            sequence_dim=ring.sequence_dim,
            sm_margin=ring.sm_margin if not last or received else 0,
            deterministic=ring.deterministic,
        )
        if last:
            dq = shares.pop()
        kept = [scratch]
        if step == 0:
            own = shares
        elif received:
            travelling = [a + b for a, b in zip(received, shares, strict=True)]
        else:
            travelling = shares
    dk, dv = own
    if travelling:
        dk, dv = (a + ring.to_next(b) for a, b in zip(own, travelling, strict=True))
    assert dq is not None
    return dq, dk.astype(k.dtype), dv.astype(v.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(q: jax.Array, k: jax.Array, v: jax.Array, ring: Ring) -> Any:
    """y, or with `return_lse` y and lse. q, k and v must vary over the same mesh axes."""
    y, lse = ring.over_parts(forward, (q, k, v), (4, 3))
    return (y, lse) if ring.return_lse else y


def _attention_forward(q: Any, k: Any, v: Any, ring: Ring) -> tuple[Any, Any]:
    q, k, v = map(once_only, (q, k, v))
    gradient = "deterministic" if ring.deterministic else "fastest"
    y, lse = ring.over_parts(partial(forward, gradient=gradient), (q, k, v), (4, 3))
    y, lse = (checkpoint_name(x, CHECKPOINT_NAME) for x in (y, lse))
    return (y, lse) if ring.return_lse else y, (q, k, v, y, lse)


def _attention_backward(ring: Ring, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    of_results = cotangents if ring.return_lse else (cotangents,)
    # The barrier makes these exchanges depend on the cotangents. Otherwise XLA would merge them
    # with the forward's exchanges of K and V, and keep the whole sequence in memory until here.
    values = lax.optimization_barrier((*residuals, *of_results))
    gradients: tuple[Any, ...] = ring.over_parts(backward, tuple(map(once_only, values)), (4, 4, 4))
    return gradients


attention.defvjp(_attention_forward, _attention_backward)
