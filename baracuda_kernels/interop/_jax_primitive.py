"""The attention step as a JAX primitive: shapes, XLA's custom call per platform, refusals."""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from baracuda_kernels import RingAttentionDescriptor, registry
from baracuda_kernels._core._selection import Architecture
from baracuda_kernels._machine import why_no_gpu
from baracuda_kernels.errors import UnsupportedError
from baracuda_kernels.ops.attention import _xla
from baracuda_kernels.ops.attention._descriptor import accumulator_of

TARGET = "baracuda_attention_step"

# Operands: q, k, v; if causal the position maps; unless first the state.
# Results: the state; if last y and lse [..., 1]. All have four dimensions, as q has: they are made
# of its type, with its sharding and the mesh axes over which it varies.
attention_step_p = Primitive(TARGET)
attention_step_p.multiple_results = True


def bind(
    *operands: jax.Array,
    descriptor: RingAttentionDescriptor,
    first: bool,
    last: bool,
    sequence_dim: int,
    sm_margin: int,
) -> list[jax.Array]:
    """One step, on operands that vary over the same mesh axes."""
    axes = frozenset().union(*(_varying_axes(x) for x in operands))
    uniform = []
    for x in operands:
        missing = tuple(sorted(axes - _varying_axes(x), key=str))
        uniform.append(jax.lax.pcast(x, missing, to="varying") if missing else x)
    results: list[jax.Array] = attention_step_p.bind(
        *uniform,
        descriptor=descriptor,
        first=first,
        last=last,
        sequence_dim=sequence_dim,
        sm_margin=sm_margin,
    )
    return results


def _varying_axes(x: Any) -> frozenset[Any]:
    aval = jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)  # JAX 0.10; before, the set itself
    return frozenset(aval.vma if kind is None else kind.varying)


def _abstract_eval(q: Any, *_: Any, descriptor: Any, last: bool, **__: Any) -> list[Any]:
    d = descriptor
    if last:
        rows = (d.batch_size, d.num_heads, d.query_len, 1)
        return [
            q.update(weak_type=False),
            q.update(shape=rows, dtype=np.dtype(np.float32), weak_type=False),
        ]
    dtype = np.dtype(accumulator_of(d.element).dtype_name)
    elements = _xla.state_bytes(d) // dtype.itemsize
    return [q.update(shape=(1, 1, 1, elements), dtype=dtype, weak_type=False)]


def _custom_call(
    ctx: Any,
    operands: tuple[Any, ...],
    arch: Any,
    descriptor: Any,
    first: bool,
    last: bool,
    sequence_dim: int,
    sm_margin: int,
) -> Any:
    chosen = registry.explain(descriptor, arch).require()
    aliases = {} if first or last else {len(operands) - 1: 0}
    rule = jax.ffi.ffi_lowering(TARGET, operand_output_aliases=aliases)
    integers = {
        "kernel": chosen.entry.kernel,
        "first": first,
        "last": last,
        "causal": descriptor.is_causal,
        "sequence_dim": sequence_dim,
        "sm_margin": sm_margin,
    }
    return rule(
        ctx,
        *operands,
        scale=np.float64(descriptor.scale),
        **{name: np.int64(value) for name, value in integers.items()},
    )


def _lower_host(ctx: Any, *operands: Any, **params: Any) -> Any:
    return _custom_call(ctx, operands, "host", **params)


def _lower_cuda(ctx: Any, *operands: Any, **params: Any) -> Any:
    reason = why_no_gpu()
    if reason:
        raise UnsupportedError(f"ring_attention: JAX compiles for CUDA, but {reason}")
    return _custom_call(ctx, operands, Architecture.here(), **params)


def _lower_elsewhere(ctx: Any, *operands: Any, **params: Any) -> NoReturn:
    platforms = ", ".join(ctx.module_context.platforms)
    raise UnsupportedError(
        f"ring_attention: JAX compiles for {platforms}; the kernels run on cpu and cuda"
    )


def _refuse_gradient(primals: Any, tangents: Any, **params: Any) -> NoReturn:
    raise UnsupportedError(
        "ring_attention: the backward pass is not built yet, only the forward; stop the gradient "
        "with jax.lax.stop_gradient, or differentiate another attention"
    )


def _refuse_vmap(args: Any, dims: Any, **params: Any) -> NoReturn:
    raise UnsupportedError(
        "ring_attention: vmap is not served; put the mapped axis into the batch dimension"
    )


def _run_eagerly(*operands: Any, **params: Any) -> Any:
    return jax.jit(lambda *xs: attention_step_p.bind(*xs, **params))(*operands)


def register_targets() -> None:
    """Hand the library's handlers to XLA, which first asks what they were written to."""
    for platform, stages in _xla.handlers().items():
        try:
            jax.ffi.register_ffi_target(TARGET, stages, platform=platform)
        except jax.errors.JaxRuntimeError as error:
            raise UnsupportedError(
                f"jax {jax.__version__} does not take this build's XLA FFI handlers: {error}"
            ) from error


register_targets()
attention_step_p.def_abstract_eval(_abstract_eval)
attention_step_p.def_impl(_run_eagerly)
mlir.register_lowering(attention_step_p, _lower_elsewhere)
mlir.register_lowering(attention_step_p, _lower_host, platform="cpu")
mlir.register_lowering(attention_step_p, _lower_cuda, platform="cuda")
ad.primitive_jvps[attention_step_p] = _refuse_gradient
batching.primitive_batchers[attention_step_p] = _refuse_vmap
