"""Identity primitives that allow one kind of differentiation and refuse the others."""

from __future__ import annotations

from typing import Any, NoReturn

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from baracuda_kernels.errors import UnsupportedError


def reverse_only(x: jax.Array) -> jax.Array:
    """x. Forward mode, which computes with the tangent and does not transpose it, is an
    UnsupportedError."""
    result: jax.Array = _reverse_p.bind(x)
    return result


def once_only(x: jax.Array) -> jax.Array:
    """x, which is part of a gradient already. Any derivative by it is an UnsupportedError."""
    result: jax.Array = _once_p.bind(x)
    return result


def _identity(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, lambda ctx, x: [x])
    batching.primitive_batchers[primitive] = lambda args, dims: (primitive.bind(*args), dims[0])
    return primitive


def _refuse_forward_mode(*_: Any, **__: Any) -> NoReturn:
    raise UnsupportedError(
        "ring_attention: forward-mode differentiation (jvp, jacfwd, linearize) is not served; use "
        "reverse mode (grad, vjp, jacrev)"
    )


def _refuse_second_order(*_: Any, **__: Any) -> NoReturn:
    raise UnsupportedError(
        "ring_attention: the gradient of its gradient (double backward) is not served; give the "
        "inner grad operands that have passed jax.lax.stop_gradient"
    )


def _reverse_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    out = _reverse_p.bind(x)
    return out, tangent if type(tangent) is ad.Zero else _tangent_p.bind(tangent)


_reverse_p = _identity("ring_attention_reverse_only")
ad.primitive_jvps[_reverse_p] = _reverse_jvp

_once_p = _identity("ring_attention_once_only")
ad.primitive_jvps[_once_p] = _refuse_second_order

# The identity of a tangent. Reverse mode transposes it and never computes it.
_tangent_p = Primitive("ring_attention_tangent")
_tangent_p.def_impl(_refuse_forward_mode)
_tangent_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(_tangent_p, _refuse_forward_mode)
ad.deflinear2(_tangent_p, lambda cotangent, _: [cotangent])
batching.primitive_batchers[_tangent_p] = _refuse_forward_mode
