"""The attention step as a JAX primitive: shapes, XLA's custom call, refusals."""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad

from baracuda_kernels import RingAttentionDescriptor
from baracuda_kernels._core._enums import Direction
from baracuda_kernels.errors import UnsupportedError
from baracuda_kernels.interop.jax import _lowering as lowering
from baracuda_kernels.interop.jax._axes import uniform
from baracuda_kernels.ops.attention import _xla
from baracuda_kernels.ops.attention._descriptor import accumulator_of

# Operands: q, k, v; if causal also the position maps; unless first also the state. Results: the
# state, or if last y and lse [..., 1]. All have four dimensions, since their types are made from
# q's, with its sharding and the mesh axes over which it varies.
attention_step_p = Primitive(lowering.TARGETS[Direction.FORWARD])


def bind(
    *operands: jax.Array,
    descriptor: RingAttentionDescriptor,
    first: bool,
    last: bool,
    sequence_dim: int,
    sm_margin: int,
    gradient: str = "none",
    separate: bool = False,
) -> list[jax.Array]:
    """One step, on operands that vary over the same mesh axes.

    `separate`: under ``vmap`` each example has a state of its own.
    `gradient` is "none", or the kernel that the result's gradient needs: the "fastest" or a
    "deterministic" one. If there is no such kernel, the step is refused.
    """
    results: list[jax.Array] = attention_step_p.bind(
        *uniform(*operands),
        descriptor=descriptor,
        first=first,
        last=last,
        sequence_dim=sequence_dim,
        sm_margin=sm_margin,
        gradient=gradient,
        separate=separate,
        elements=state_elements(descriptor),
    )
    return results


def state_elements(descriptor: RingAttentionDescriptor) -> int:
    """Number of elements of the state, in the accumulator's type."""
    return _xla.state_bytes(descriptor) // accumulator(descriptor).itemsize


def accumulator(descriptor: RingAttentionDescriptor) -> np.dtype:
    return np.dtype(accumulator_of(descriptor.element).dtype_name)


def _abstract_eval(
    q: Any, *_: Any, descriptor: Any, last: bool, elements: int, **__: Any
) -> list[Any]:
    d = descriptor
    wide = accumulator(d)
    if last:
        rows = (d.batch_size, d.num_heads, d.query_len, 1)
        return [q.update(weak_type=False), q.update(shape=rows, dtype=wide, weak_type=False)]
    return [q.update(shape=(1, 1, 1, elements), dtype=wide, weak_type=False)]


def _names(descriptor: Any, first: bool, last: bool, **_: Any) -> tuple[list[str], list[str]]:
    operands = ["q", "k", "v", *["maps"] * descriptor.is_causal, *["kept"] * (not first)]
    return operands, ["y", "lse"] if last else ["kept"]


def _custom_call(
    ctx: Any, *operands: Any, arch: Any, descriptor: Any, first: bool, last: bool,
    sequence_dim: int, sm_margin: int, gradient: str, separate: bool, elements: int,
) -> Any:  # fmt: skip
    kernel = lowering.choose(descriptor, arch, Direction.FORWARD)
    if gradient != "none":
        # Refuses a missing backward now, not after the forward has run.
        lowering.choose(descriptor, arch, Direction.BACKWARD, gradient == "deterministic")
    return lowering.call_target(
        ctx,
        operands,
        Direction.FORWARD,
        descriptor.scale,
        in_place=not first and not last,
        kernel=kernel,
        first=first,
        last=last,
        causal=descriptor.is_causal,
        sequence_dim=sequence_dim,
        sm_margin=sm_margin,
        interruptible=gradient == "none",
    )


def _refuse_gradient(primals: Any, tangents: Any, **params: Any) -> NoReturn:
    raise UnsupportedError(
        "attention_step: a single step has no gradient; differentiate ring_attention, or stop the "
        "gradient with jax.lax.stop_gradient"
    )


lowering.def_step(attention_step_p, _custom_call)
lowering.def_batching(attention_step_p, _names)
attention_step_p.def_abstract_eval(_abstract_eval)
ad.primitive_jvps[attention_step_p] = _refuse_gradient
