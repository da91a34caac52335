"""The backward step as a JAX primitive."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Primitive

from baracuda_kernels import RingAttentionDescriptor
from baracuda_kernels._core._enums import Direction
from baracuda_kernels.interop.jax import _lowering as lowering
from baracuda_kernels.interop.jax._axes import uniform
from baracuda_kernels.interop.jax._step import accumulator
from baracuda_kernels.ops.attention import _xla

# Operands: q, k, v, dy; if causal also the position maps. The first step has also y, lse [..., 1] and, if
# lse has a gradient, dlse; later steps have the scratch. Results: the scratch, dk, dv; if last also dq.
backward_step_p = Primitive(lowering.TARGETS[Direction.BACKWARD])


def bind(
    *operands: jax.Array,
    descriptor: RingAttentionDescriptor,
    first: bool,
    last: bool,
    has_dlse: bool,
    sequence_dim: int,
    sm_margin: int,
    deterministic: bool,
) -> list[jax.Array]:
    """One step, on operands that vary over the same mesh axes.

    dk and dv have the accumulator's type; only a step that is both first and last rounds them.
    """
    nbytes = _xla.backward_scratch_bytes(descriptor, first and last)
    results: list[jax.Array] = backward_step_p.bind(
        *uniform(*operands),
        descriptor=descriptor,
        first=first,
        last=last,
        has_dlse=has_dlse,
        sequence_dim=sequence_dim,
        sm_margin=sm_margin,
        deterministic=deterministic,
        elements=-(-nbytes // accumulator(descriptor).itemsize),
    )
    return results


def _abstract_eval(
    q: Any, k: Any, *_: Any, descriptor: Any, first: bool, last: bool, elements: int, **__: Any
) -> list[Any]:
    wide = accumulator(descriptor)
    scratch = q.update(shape=(1, 1, 1, elements), dtype=wide, weak_type=False)
    of_keys = k.update(dtype=k.dtype if first and last else wide, weak_type=False)
    return [scratch, of_keys, of_keys, *[q.update(weak_type=False)] * last]


def _names(
    descriptor: Any, first: bool, last: bool, has_dlse: bool, **_: Any
) -> tuple[list[str], list[str]]:
    forward = ["y", "lse", *["dlse"] * has_dlse]
    operands = ["q", "k", "v", "dy", *["maps"] * descriptor.is_causal]
    return operands + (forward if first else ["kept"]), ["kept", "dk", "dv", *["dq"] * last]


def _custom_call(
    ctx: Any, *operands: Any, arch: Any, descriptor: Any, first: bool, last: bool, has_dlse: bool,
    sequence_dim: int, sm_margin: int, deterministic: bool, elements: int,
) -> Any:  # fmt: skip
    return lowering.call_target(
        ctx,
        operands,
        Direction.BACKWARD,
        descriptor.scale,
        in_place=not first,
        kernel=lowering.choose(descriptor, arch, Direction.BACKWARD, deterministic),
        first=first,
        last=last,
        causal=descriptor.is_causal,
        dlse=has_dlse,
        sequence_dim=sequence_dim,
        sm_margin=sm_margin,
    )


lowering.def_step(backward_step_p, _custom_call)
lowering.def_batching(backward_step_p, _names)
backward_step_p.def_abstract_eval(_abstract_eval)
