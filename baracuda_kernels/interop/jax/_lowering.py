"""Shared by the JAX primitives: XLA's targets and platforms, the choice of a kernel, batching."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from baracuda_kernels import PlanPreference, RingAttentionDescriptor, registry
from baracuda_kernels._core._architecture import Architecture
from baracuda_kernels._core._enums import Direction
from baracuda_kernels._machine import why_no_gpu
from baracuda_kernels.errors import UnsupportedError
from baracuda_kernels.interop.jax._axes import over_first_axis, uniform
from baracuda_kernels.ops.attention import _xla

TARGETS = {
    Direction.FORWARD: "baracuda_attention_step",
    Direction.BACKWARD: "baracuda_attention_backward_step",
}


def register_targets() -> None:
    """Register the library's handlers with XLA, which first checks their version."""
    for direction, platforms in _xla.handlers().items():
        for platform, stages in platforms.items():
            try:
                jax.ffi.register_ffi_target(TARGETS[direction], stages, platform=platform)
            except jax.errors.JaxRuntimeError as error:
                raise UnsupportedError(
                    f"jax {jax.__version__} does not take this build's XLA FFI handlers: {error}"
                ) from error


def choose(
    descriptor: RingAttentionDescriptor,
    arch: Any,
    direction: Direction,
    deterministic: bool = False,
) -> int:
    """The number of the kernel that serves a step on `arch`.

    Raises
    ------
    UnsupportedError
        There is none; the message has the reason of each.
    """
    preference = PlanPreference(deterministic=True if deterministic else None)
    family = registry.explain(descriptor, arch, preference, direction).require().entry
    number: int = family.backward_kernel if direction is Direction.BACKWARD else family.kernel
    return number


def def_step(primitive: Primitive, custom_call: Callable[..., Any]) -> None:
    """Lower a primitive to ``custom_call(ctx, *operands, arch=…, **params)`` on cpu and cuda, and
    refuse it on other platforms. Outside of ``jit`` a call of the primitive is compiled alone."""

    def lower_host(ctx: Any, *operands: Any, **params: Any) -> Any:
        return custom_call(ctx, *operands, arch="host", **params)

    def lower_cuda(ctx: Any, *operands: Any, **params: Any) -> Any:
        reason = why_no_gpu()
        if reason:
            raise UnsupportedError(f"ring_attention: JAX compiles for CUDA, but {reason}")
        return custom_call(ctx, *operands, arch=Architecture.here(), **params)

    def lower_elsewhere(ctx: Any, *operands: Any, **params: Any) -> NoReturn:
        platforms = ", ".join(ctx.module_context.platforms)
        raise UnsupportedError(f"ring_attention: JAX compiles for {platforms}, must be cpu or cuda")

    @lru_cache(maxsize=256)
    def compiled(params: tuple[tuple[str, Any], ...]) -> Any:
        def call(*operands: Any) -> Any:
            # JAX's search for NaN calls this without tracing: a compiled result had one.
            if not any(isinstance(x, jax.core.Tracer) for x in operands):
                raise FloatingPointError(f"invalid value (nan or inf) in {primitive.name}")
            return primitive.bind(*operands, **dict(params))

        return jax.jit(call)

    def run_eagerly(*operands: Any, **params: Any) -> Any:
        with jax.disable_jit(False):  # otherwise the call would come back here
            return compiled(tuple(sorted(params.items())))(*operands)

    primitive.multiple_results = True
    primitive.def_impl(run_eagerly)
    mlir.register_lowering(primitive, lower_elsewhere)
    mlir.register_lowering(primitive, lower_host, platform="cpu")
    mlir.register_lowering(primitive, lower_cuda, platform="cuda")


def call_target(
    ctx: Any, operands: tuple[Any, ...], direction: Direction, scale: float, in_place: bool,
    **integers: int,
) -> Any:  # fmt: skip
    """The custom call. With ``in_place`` the first result shares the memory of the last operand."""
    aliases = {len(operands) - 1: 0} if in_place else {}
    rule = jax.ffi.ffi_lowering(TARGETS[direction], operand_output_aliases=aliases)
    return rule(
        ctx,
        *operands,
        scale=np.float64(scale),
        **{name: np.int64(value) for name, value in integers.items()},
    )


def def_batching(primitive: Primitive, names: Callable[..., tuple[list[str], list[str]]]) -> None:
    """Let ``vmap`` put the mapped axis into the batch dimension.

    ``names(**params)`` gives the names of the operands and of the results. The operand ``maps`` has
    no batch. ``kept`` is the state or scratch that each step gives to the next; it is opaque, and
    its size is proportional to the batch. A larger batch's is not made of those of its parts. So with
    the parameter ``separate`` there is one call after the other, each with a state of its own.
    """

    def one_by_one(args: Any, dims: Any, **params: Any) -> list[Any]:
        """Mapped dimensions come first, in the operands and in the results."""

        def call(mapped: list[Any]) -> list[Any]:
            rest = iter(mapped)
            operands = [x if dim is None else next(rest) for x, dim in zip(args, dims, strict=True)]
            results: list[Any] = primitive.bind(*uniform(*operands), **params)
            return results

        mapped = [x for x, dim in zip(args, dims, strict=True) if dim is not None]
        found: list[Any] = jax.lax.map(call, mapped)
        return found

    def merged(args: Any, dims: Any, **params: Any) -> list[Any]:
        """Mapped dimensions come first, in the operands and in the results."""
        operand_names, result_names = names(**params)
        has_own_maps = any(name == "maps" and dim is not None
                           for name, dim in zip(operand_names, dims, strict=True))  # fmt: skip
        if has_own_maps and "kept" not in (*operand_names, *result_names):
            return one_by_one(args, dims, **params)
        count = next(x.shape[0] for x, dim in zip(args, dims, strict=True) if dim is not None)
        operands = []
        for name, x, dim in zip(operand_names, args, dims, strict=True):
            if name == "maps":
                if dim is not None:
                    raise UnsupportedError(_MAPPED_POSITIONS)
                operands.append(x)
                continue
            x = jnp.broadcast_to(x, (count, *x.shape)) if dim is None else x
            if name == "kept":
                operands.append(x.reshape(1, 1, 1, x.size))
            else:
                operands.append(x.reshape(count * x.shape[1], *x.shape[2:]))
        d = params["descriptor"]
        larger = {
            **params,
            "descriptor": type(d).from_dict({**d.to_dict(), "batch_size": count * d.batch_size}),
            "elements": count * params["elements"],
        }
        results = []
        for name, x in zip(
            result_names, primitive.bind(*uniform(*operands), **larger), strict=True
        ):
            if name == "kept":
                results.append(x.reshape(count, 1, 1, 1, params["elements"]))
            else:
                results.append(x.reshape(count, d.batch_size, *x.shape[1:]))
        return results

    def rule(args: Any, dims: Any, **params: Any) -> tuple[list[Any], list[int]]:
        args = [x if dim is None else jnp.moveaxis(x, dim, 0)
                for x, dim in zip(args, dims, strict=True)]  # fmt: skip
        dims = [None if dim is None else 0 for dim in dims]
        compute = one_by_one if params.get("separate") else merged
        results = over_first_axis(partial(compute, dims=dims, **params), args, dims)
        return results, [0] * len(results)

    batching.primitive_batchers[primitive] = rule


# JAX maps them where it turns a branch into a select.
_MAPPED_POSITIONS = (
    "ring_attention: got positions along a mapped axis, as under vmap of a cond or switch whose "
    "predicate is mapped, must be the same for all: map the call alone, and select with jnp.where"
)


register_targets()
