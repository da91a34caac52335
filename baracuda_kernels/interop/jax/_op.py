"""The public calls, and their checks while JAX traces."""

from __future__ import annotations

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from baracuda_kernels import RingAttentionDescriptor
from baracuda_kernels._arguments import flag, integer, layout_of
from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels._local_memory import element_of
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.interop.jax import _step
from baracuda_kernels.interop.jax._axes import (
    explicit_spec,
    refuse_explicit_axes,
    refuse_sums,
    ring_axes,
    uniform,
    varying_axes,
)
from baracuda_kernels.interop.jax._order import reverse_only
from baracuda_kernels.interop.jax._ring import Ring, attention, position_maps
from baracuda_kernels.sharding import MAX_RANKS, positions, rows_per_rank

_SEQUENCE_DIM = {"bhsd": 2, "bshd": 1}


@overload
def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    axis_name: Any,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    tensor_layout: str = "bhsd",
    return_lse: Literal[False] = False,
    sm_margin: int = 8,
    deterministic: bool = False,
) -> jax.Array: ...
@overload
def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    axis_name: Any,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    tensor_layout: str = "bhsd",
    return_lse: Literal[True],
    sm_margin: int = 8,
    deterministic: bool = False,
) -> tuple[jax.Array, jax.Array]: ...
@overload
def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    axis_name: Any,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    tensor_layout: str = "bhsd",
    return_lse: bool,
    sm_margin: int = 8,
    deterministic: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]: ...
def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    axis_name: Any,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    tensor_layout: str = "bhsd",
    return_lse: bool = False,
    sm_margin: int = 8,
    deterministic: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Exact attention of this device's queries over the keys of a whole mesh axis.

    Liu, Zaharia, Abbeel 2023, arXiv:2310.01889. Call it inside ``jax.shard_map`` (and ``jax.jit``).
    The steps are unrolled: one custom call for each of the P devices of the axis, with one buffer
    for the state, and P - 1 exchanges of K and V.

    ``jax.grad`` and ``jax.vjp`` work, once. They add P steps, and P - 1 exchanges of K and V and of
    the sums of their gradients. These sums are in float32 (float64 for float64), in the order of
    the schedule, and rounded once. The backward keeps q, k, v, y and lse; a policy of
    ``jax.checkpoint`` knows y and lse as ``"ring_attention"``. ``jax.vmap`` puts the mapped axis
    into the batch. If explicit mesh axes shard batch or heads, each device computes its part.

    Parameters
    ----------
    q : jax.Array
        This device's rows, ``[B, H, Q, D]``, or ``[B, Q, H, D]`` for ``tensor_layout="bshd"``;
        float16, bfloat16, float32 or float64. Without ``jax_enable_x64`` JAX turns NumPy's
        float64 into float32.
    k, v : jax.Array
        ``[B, Hkv, K, D]`` (``[B, K, Hkv, D]``) of q's dtype; Hkv must divide H.
    axis_name : str or tuple of str
        Mesh axis over which the sequence is sharded; or several, the first one outermost, as in a
        ``PartitionSpec``.
    is_causal : bool, default False
        Mask keys whose global position is after the query's.
    scale : float, optional
        Factor on the scores; by default ``1/sqrt(D)``.
    sequence_layout : SequenceLayout or str, default "contiguous"
        Which rows of the sequence a device holds: contiguous, zigzag or striped; see
        :func:`sequence_order`.
    tensor_layout : {"bhsd", "bshd"}, default "bhsd"
        Order of the dimensions of q, k, v and y.
    return_lse : bool, default False
        Return ``(y, lse)`` instead of ``y``.
    sm_margin : int, default 8
        On GPUs: number of SMs for XLA's exchange while K and V travel. Persistent kernels leave
        these SMs free. Other kernels that would fill the device begin some microseconds later, so
        that the exchange's kernel starts first.
    deterministic : bool, default False
        Take only kernels whose every sum has a fixed order, for the gradients too.

    Returns
    -------
    y : jax.Array
        Of q's shape and dtype; 0 in rows that see no key.
    lse : jax.Array
        ``[B, H, Q]``, float64 for float64, else float32: natural logarithm of the sum of the
        exponentials of the scaled scores; -inf in rows that see no key.

    Raises
    ------
    InvalidProblemError
        While tracing: shapes or dtypes do not fit, the layout is unknown, ``axis_name`` is not
        bound here, explicit mesh axes shard rows or head_dim, or an array is unreduced
        over a mesh axis, or reduced over one over which no other varies.
    UnsupportedError
        While tracing, and under ``jit`` while compiling: forward mode, or a gradient of the
        gradient. While compiling: no kernel serves the problem on the platform, or its gradient if
        that is asked for; the message has the reason of each kernel.
    """
    axes, devices = ring_axes(axis_name)
    dim = _sequence_dim(tensor_layout)
    q, k, v = (_array(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    return_lse = flag("return_lse", return_lse)
    deterministic = flag("deterministic", deterministic)
    sm_margin = _margin(sm_margin)

    ring = Ring(
        _describe(q, k, v, dim, is_causal, scale, sequence_layout),
        axis_name,
        axes,
        devices,
        dim,
        sm_margin,
        return_lse,
        deterministic,
        explicit_spec(q, k, v, axis_name, dim),
    )
    along = varying_axes(lax.axis_index(axis_name)) if len(devices) > 1 else frozenset()
    q, k, v = uniform(*map(reverse_only, (q, k, v)), also=along)
    for name, x in (("q", q), ("k", k), ("v", v)):
        refuse_sums(name, x, "reduced")  # those that another operand has not made varying
    result: jax.Array | tuple[jax.Array, jax.Array] = attention(q, k, v, ring)
    return result


def attention_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    state: jax.Array | None = None,
    *,
    rank: Any = 0,
    origin: Any = 0,
    world_size: int = 1,
    last: bool = True,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    tensor_layout: str = "bhsd",
    sm_margin: int = 0,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """One step, for callers who send K and V themselves: adds a chunk of keys to the state.

    Parameters
    ----------
    q, k, v, is_causal, scale, sequence_layout, tensor_layout
        As in :func:`ring_attention`, with its defaults.
    sm_margin : int, default 0
        Number of SMs that the kernel leaves free for a concurrent exchange.
    state : jax.Array, optional
        The result of the previous step; None for the first step. XLA updates it in place.
    rank, origin : int or int32 scalar, default 0
        The rank of the queries and the rank of the keys, in ``[0, world_size)``. Used only by
        causal masks. The host reads and checks a value that is not traced. Of a traced one it checks
        the type alone.
    world_size : int, default 1
        Number of ranks, at most 65536.
    last : bool, default True
        Normalise: return y and lse instead of the state.

    Returns
    -------
    state : jax.Array
        Unless ``last``. Opaque; give it to the next step with the same q. Under ``vmap`` each
        example has its own, and its steps run one after the other.
    y, lse : jax.Array
        If ``last``. As in :func:`ring_attention`.

    Raises
    ------
    InvalidProblemError, UnsupportedError
        As in :func:`ring_attention`. Also: the state has not this problem's size and dtype (a state
        of another problem of the same size is not recognised), a gradient is asked for, or an
        explicit mesh axis shards q, k or v.
    """
    dim = _sequence_dim(tensor_layout)
    q, k, v = (_array(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    refuse_explicit_axes(q, k, v)
    descriptor = _describe(q, k, v, dim, is_causal, scale, sequence_layout)
    world_size = integer("world_size", world_size, 1, MAX_RANKS)
    sm_margin, last = _margin(sm_margin), flag("last", last)
    rank, origin = (_rank_of(*one, world_size) for one in (("rank", rank), ("origin", origin)))
    operands = [q, k, v]
    if is_causal:
        operands.append(position_maps(descriptor, world_size, rank, origin))
    if state is not None:
        _check_state(state, descriptor)
        operands.append(state)
    results = _step.bind(
        *operands,
        descriptor=descriptor,
        first=state is None,
        last=last,
        sequence_dim=dim,
        sm_margin=sm_margin,
        separate=state is not None or not last,
    )
    if not last:
        return results[0]
    y, lse = results
    return y, lse[..., 0]


def sequence_order(
    total: int, world_size: int, sequence_layout: SequenceLayout | str = "contiguous"
) -> np.ndarray:
    """Rows of the whole sequence in the order in which the ranks hold them.

    ``x[:, :, order]``, sharded evenly over a mesh axis, gives each device its rows of the layout.
    ``y[:, :, np.argsort(order)]`` is the inverse. The result is also the global position of each
    row, for rotary embeddings.

    Parameters
    ----------
    total : int
        Rows of the whole sequence, a multiple of `world_size`.
    world_size : int
        Number of ranks.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.

    Returns
    -------
    numpy.ndarray
        int64 ``[total]``.

    Raises
    ------
    InvalidProblemError
        `total` is not a multiple of `world_size`, or the layout is unknown.
    """
    length = rows_per_rank(total, world_size)
    return np.concatenate(
        [positions(length, rank, world_size, sequence_layout) for rank in range(world_size)]
    )


def _sequence_dim(tensor_layout: str) -> int:
    if not isinstance(tensor_layout, str) or tensor_layout not in _SEQUENCE_DIM:
        raise InvalidProblemError(f"tensor_layout: got {tensor_layout!r}, must be 'bhsd' or 'bshd'")
    return _SEQUENCE_DIM[tensor_layout]


def _array(name: str, x: Any) -> jax.Array:
    if not isinstance(x, (jax.Array, np.ndarray)):
        raise InvalidProblemError(
            f"{name}: got {type(x).__module__}.{type(x).__qualname__}, must be a jax.Array"
        )
    if x.ndim != 4:
        raise InvalidProblemError(f"{name}: got shape {x.shape}, must have four dimensions")
    array = _converted(name, x) if isinstance(x, np.ndarray) else x
    refuse_sums(name, array)
    return array


def _converted(name: str, x: np.ndarray) -> jax.Array:
    """An array of NumPy as JAX's, on the default device."""
    if isinstance(x, np.ma.MaskedArray):
        raise InvalidProblemError(f"{name}: got a masked array, must be an array without a mask")
    element_of(x, name)  # JAX has no word on the order of bytes
    return jnp.asarray(x)


def _describe(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dim: int,
    is_causal: bool,
    scale: float | None,
    sequence_layout: SequenceLayout | str,
) -> RingAttentionDescriptor:
    element = element_of(q, "q")
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise InvalidProblemError(f"{name}: got dtype {x.dtype}, must be q's, {q.dtype}")
    if v.shape != k.shape:
        raise InvalidProblemError(f"v: got shape {v.shape}, must be k's, {k.shape}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise InvalidProblemError(
            f"k: got shape {k.shape}, must have the batch and head_dim of q, {q.shape}"
        )
    descriptor = RingAttentionDescriptor(
        q.shape[0],
        q.shape[3 - dim],
        q.shape[dim],
        k.shape[dim],
        q.shape[3],
        scale,
        is_causal,
        element,
        num_kv_heads=k.shape[3 - dim],
        sequence_layout=layout_of(sequence_layout),
    )
    descriptor.validate()
    return descriptor


def _margin(sm_margin: Any) -> int:
    return integer("sm_margin", sm_margin, 0, 2**31 - 1)  # the kernels' type


def _rank_of(name: str, who: Any, world_size: int) -> Any:
    """A rank in range, or a traced value as it is: XLA clamps one that is out of range."""
    if isinstance(who, jax.core.Tracer):
        if who.ndim or not jnp.issubdtype(who.dtype, jnp.integer):
            raise InvalidProblemError(
                f"{name}: got {who}, must be an integer from 0 to {world_size - 1}"
            )
        return who
    if isinstance(who, (jax.Array, np.ndarray)) and who.ndim == 0:
        who = np.asarray(who)[()]
    return integer(name, who, 0, world_size - 1)


def _check_state(state: Any, descriptor: RingAttentionDescriptor) -> None:
    dtype = _step.accumulator(descriptor)
    elements = _step.state_elements(descriptor)
    if getattr(state, "shape", None) != (1, 1, 1, elements) or state.dtype != dtype:
        raise InvalidProblemError(
            f"state: got {state!r:.80}, must be the result of an earlier step of this problem"
        )
