"""The mesh axes over which an array varies, and the explicit axes that shard batch and heads.

Each device of an explicit axis computes its own part of batch and heads. Otherwise XLA, which does
not know the dimensions of a custom call, would gather the operands on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec, get_abstract_mesh

from baracuda_kernels.errors import InvalidProblemError, UnsupportedError


def ring_axes(axis_name: Any) -> tuple[Any, tuple[int, ...]]:
    """The axes in the mesh's order, and the number that each rank's device has in that order.

    The order of the names gives the ranks, for ``lax.axis_index`` and for the shards of a
    PartitionSpec. ``lax.ppermute`` counts devices in the order of the mesh.

    Raises
    ------
    InvalidProblemError
        They are not axes of a ``jax.shard_map`` around this call.
    """
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    mesh = get_abstract_mesh()
    known = all(isinstance(name, str) and name in mesh.manual_axes for name in names)
    if not known or len(set(names)) < len(names):
        raise InvalidProblemError(
            f"axis_name: got {axis_name!r}, must be a mesh axis here, or a tuple of several: call "
            "ring_attention inside jax.shard_map over a mesh that has it"
        )
    axes = tuple(name for name in mesh.axis_names if name in names)
    sizes = [mesh.shape[name] for name in axes]
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    by_rank = devices.transpose([axes.index(name) for name in names])
    return axes, tuple(by_rank.ravel().tolist())


def varying_axes(x: Any) -> frozenset[Any]:
    """The mesh axes over which an array varies."""
    aval = jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)  # JAX 0.10; older ones have the set in vma
    return frozenset(aval.vma if kind is None else kind.varying)


def uniform(*arrays: Any, also: frozenset[Any] = frozenset()) -> list[Any]:
    """The arrays, each made to vary over the mesh axes of all of them and over the axes `also`."""
    axes = also.union(*(varying_axes(x) for x in arrays))
    uniform = []
    for x in arrays:
        missing = tuple(sorted(axes - varying_axes(x), key=str))
        uniform.append(jax.lax.pcast(x, missing, to="varying") if missing else x)
    return uniform


# For each dimension of q, k and v: the explicit mesh axes that shard it.
Spec = tuple[tuple[Any, ...], ...]


def explicit_spec(
    q: jax.Array, k: jax.Array, v: jax.Array, axis_name: Any, sequence_dim: int
) -> Spec:
    """The spec of q, k and v; empty if no explicit axis shards them.

    Raises
    ------
    InvalidProblemError
        They are sharded differently, or over dimensions other than batch and heads.
    """
    specs = [_spec(x) for x in (q, k, v)]
    if not any(map(any, specs)):
        return ()
    for name, spec in zip("qkv", specs, strict=True):
        for dim, axes in enumerate(spec):
            if axes and dim not in (0, 3 - sequence_dim):
                raise InvalidProblemError(
                    f"{name}: got {PartitionSpec(*spec)}, must be sharded by explicit mesh axes "
                    f"over batch and heads alone, and over rows by {axis_name!r}"
                )
        if spec != specs[0]:
            raise InvalidProblemError(
                f"{name}: got {PartitionSpec(*spec)}, must be sharded as q is, "
                f"{PartitionSpec(*specs[0])}: use jax.reshard"
            )
    return specs[0]


def refuse_sums(name: str, x: Any, kind: str = "unreduced") -> None:
    """Raise for an array whose sum over a mesh axis is still to be made: its own ("unreduced"),
    since attention is not linear, or its gradient's ("reduced"), which the backward would need."""
    aval = jax.typeof(x)
    holders = (getattr(aval, "manual_axis_type", None), getattr(aval.sharding, "spec", None))
    axes = frozenset().union(*(getattr(each, kind, ()) for each in holders))
    if axes:
        raise InvalidProblemError(
            f"{name}: got an array that is {kind} over {', '.join(sorted(map(str, axes)))}, must "
            f"{_INSTEAD[kind]} inside jax.shard_map"
        )


_INSTEAD = {
    "unreduced": "be summed before: use jax.reshard, or jax.lax.psum",
    "reduced": "be varying or replicated: use jax.reshard, or jax.lax.pcast",
}


def over_parts(
    compute: Callable[..., Any], arrays: Sequence[jax.Array], results: Sequence[int], spec: Spec,
    axis_name: Any, sequence_dim: int,
) -> Any:  # fmt: skip
    """``compute(*arrays)`` on each device's parts, sharded by `spec`.

    An array or result has four dimensions like q, or is ``[B, H, Q]``, or a scalar. `results` has
    the number of dimensions of each result.
    """
    if not spec:
        return compute(*arrays)
    of = {
        4: PartitionSpec(*spec),
        3: PartitionSpec(spec[0], spec[3 - sequence_dim], None),
        0: PartitionSpec(),
    }
    mapped = jax.shard_map(
        compute,
        in_specs=tuple(of[x.ndim] for x in arrays),
        out_specs=tuple(of[ndim] for ndim in results),
        axis_names={axis for axes in spec for axis in axes},
        # The same as in the surrounding shard_map.
        check_vma=bool(varying_axes(lax.axis_index(axis_name))),
    )
    return mapped(*arrays)


def over_first_axis(
    compute: Callable[..., list[Any]], arrays: Sequence[Any], dims: Sequence[int | None]
) -> list[Any]:
    """``compute(arrays)`` on each device's parts, if explicit axes shard the mapped dimension.

    The mapped dimension is the first one, of arrays whose entry in `dims` is 0 and of all results.
    """
    specs = [_spec(x)[0] for x, dim in zip(arrays, dims, strict=True) if dim == 0]
    axes = next(filter(None, specs), ())
    if not axes:
        return compute(arrays)
    if jax.__version_info__ < (0, 10):  # within vmap its mesh has only the axes of the ring
        raise UnsupportedError(
            f"vmap: got an axis sharded by the explicit mesh axes {axes} in JAX {jax.__version__}, "
            "must be JAX 0.10 or later"
        )
    first = PartitionSpec(axes)
    mapped: Callable[..., list[Any]] = jax.shard_map(
        lambda *parts: compute(parts),
        in_specs=tuple(PartitionSpec() if dim is None else first for dim in dims),
        out_specs=first,
        axis_names=set(axes),
        check_vma=any(map(varying_axes, arrays)),
    )
    return mapped(*arrays)


def refuse_explicit_axes(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    """Raise for operands of a step that explicit axes shard: its state has no dimension to
    shard."""
    for name, x in zip("qkv", (q, k, v), strict=True):
        if any(_spec(x)):
            raise InvalidProblemError(
                f"{name}: got {PartitionSpec(*_spec(x))} over explicit mesh axes, must not be "
                "sharded: call attention_step inside jax.shard_map over them"
            )


def _spec(x: Any) -> Spec:
    """For each dimension the explicit mesh axes that shard it."""
    sharding: Any = getattr(jax.typeof(x), "sharding", None)
    mesh: Any = getattr(sharding, "mesh", None)
    if mesh is None or mesh.empty:
        return ((),) * int(x.ndim)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))

    def explicit(entry: Any) -> tuple[Any, ...]:
        axes = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        return tuple(axis for axis in axes if kinds.get(axis) == AxisType.Explicit)

    # Iterating over a PartitionSpec fails if it has reduced axes.
    partitions = getattr(sharding.spec, "partitions", sharding.spec)
    spec = tuple(map(explicit, partitions))
    return spec + ((),) * int(x.ndim - len(spec))
