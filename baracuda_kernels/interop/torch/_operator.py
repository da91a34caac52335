"""Ring Attention as operators of PyTorch: forward, backward, fake implementations, autograd
formula."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._autograd import _profiler_enabled
from torch.overrides import has_torch_function_variadic

from baracuda_kernels._arguments import layout_of
from baracuda_kernels.errors import BaracudaError, UnsupportedError
from baracuda_kernels.interop.torch import _compiled, _problem, _tangents
from baracuda_kernels.interop.torch._entered import innermost, note_call
from baracuda_kernels.interop.torch._refusal import tell
from baracuda_kernels.interop.torch._refusal_message import as_told, was_told
from baracuda_kernels.interop.torch._ring import ring_of

_Pair = tuple[torch.Tensor, torch.Tensor]
_Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# torch.library.custom_op would add about 10 us of Python to every call.
_library = _tangents.library()
# with_gradient: refuse a problem without a backward before anything is sent. call: see _compiled.
_library.define(
    "ring_attention(Tensor q, Tensor k, Tensor v, str group_name, bool is_causal, float? scale, "
    "str sequence_layout, bool with_gradient=False, Tensor? call=None) -> (Tensor, Tensor)",
    tags=(torch.Tag.needs_fixed_stride_order,),
)
_library.define(
    "ring_attention_backward(Tensor? dy, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor y, "
    "Tensor lse, str group_name, bool is_causal, float? scale, str sequence_layout) "
    "-> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.needs_fixed_stride_order,),
)


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_name: str,
    is_causal: bool,
    scale: float | None,
    sequence_layout: str,
    with_gradient: bool = False,
    call: torch.Tensor | None = None,
) -> _Pair:
    if call is not None:  # compiled code: `attend` has run in the compiler
        note_call(group_name, sequence_layout, q.device)
        if call.dim() == 2:
            _require_context(group_name, sequence_layout, q.device)
    ring = ring_of(group_name, q.device)
    both: _Pair = ring.attend(q, k, v, is_causal, scale, sequence_layout, with_gradient)
    return both


def _require_context(group_name: str, sequence_layout: str, device: torch.device) -> None:
    """Raise if the code was compiled in another context than this thread's. A compiler that met the
    attention below the function layer has not seen that it depends on the context."""
    mode = innermost()
    if mode is None or (mode.group_name, mode.layout) != (group_name, sequence_layout):
        error = UnsupportedError(
            "scaled_dot_product_attention: got code that was compiled in a context_parallel of "
            "another group or layout, must be compiled anew: call torch.compiler.reset()"
        )
        tell(group_name, error, device)
        raise error


def run_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_name: str,
    is_causal: bool,
    scale: float | None,
    sequence_layout: str,
    with_gradient: bool,
) -> _Pair:
    """The operator's forward in eager code, below autograd. Arguments are those of the operator."""
    options = group_name, is_causal, scale, sequence_layout, with_gradient
    if _needs_no_dispatch(q, k, v):
        return _forward(q, k, v, *options)
    try:
        _problem.check_before_dispatch(q, k, v, is_causal, scale)
    except BaracudaError as error:
        tell(group_name, error, q.device)
        raise
    both: _Pair
    with torch._C._AutoDispatchBelowAutograd():
        both = forward_op(q, k, v, *options)
    return both


_keys_of = torch._C._dispatch_keys
_plain_keys: set[int] = set()


def _needs_no_dispatch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether PyTorch's dispatcher would only call the implementation: there is no mode, profiler
    or tracer, and the tensors have only the keys of their device and of autograd. This test takes a
    third of the dispatcher's host time."""
    return (
        not torch._C._len_torch_dispatch_stack()
        and not has_torch_function_variadic(q, k, v)
        and not _profiler_enabled()
        and torch._C._get_tracing_state() is None
        and (_keys_of(q).raw_repr() in _plain_keys or _has_plain_keys(q))
        and (_keys_of(k).raw_repr() in _plain_keys or _has_plain_keys(k))
        and (_keys_of(v).raw_repr() in _plain_keys or _has_plain_keys(v))
    )


def _has_plain_keys(x: torch.Tensor) -> bool:
    """Whether a new tensor on the same device has the same keys. If so, they are remembered."""
    if x.device.type not in ("cpu", "cuda"):
        return False
    keys = _keys_of(x).raw_repr()
    with torch.inference_mode(x.is_inference()):
        plain = _keys_of(torch.empty(0, device=x.device)).raw_repr()
    if keys == plain:
        _plain_keys.add(keys)
    return keys == plain


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group_name: str,
    is_causal: bool,
    scale: float | None,
    sequence_layout: str,
    with_gradient: bool = False,
    call: torch.Tensor | None = None,
) -> _Pair:
    _compiled.chain()
    if call is None:
        _problem.check(q, k, v, sequence_layout)
    # In compiled code the call itself refuses tensors, when it runs: an error here would be one of
    # the compiler, which the other ranks would not get.
    return _problem.outputs(q)


def _gradients(
    dy: torch.Tensor | None,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    y: torch.Tensor,
    lse: torch.Tensor,
    group_name: str,
    is_causal: bool,
    scale: float | None,
    sequence_layout: str,
) -> _Triple:
    ring = ring_of(group_name, q.device)
    options = is_causal, scale, sequence_layout
    gradients: _Triple = ring.gradients(dy, dlse, q, k, v, y, lse, *options)
    return gradients


def _fake_gradients(
    dy: torch.Tensor | None,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    y: torch.Tensor,
    lse: torch.Tensor,
    group_name: str,
    is_causal: bool,
    scale: float | None,
    sequence_layout: str,
) -> _Triple:
    _compiled.chain()
    return _problem.empty_like(q), _problem.empty_like(k), _problem.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: _Pair) -> None:
    q, k, v = inputs[:3]
    ctx.options, ctx.device = inputs[3:7], q.device
    y, lse = output
    ctx.set_materialize_grads(False)
    # lse is saved in a shape that no other attention saves, nor another layout: see _saved. It is
    # detached, since a saved view of an output and the graph would keep each other alive.
    shape = _saved_shape(lse.shape, ctx.options[3])
    ctx.save_for_backward(q, k, v, y, lse.detach().view(shape))


def _backward(ctx: Any, dy: torch.Tensor | None, dlse: torch.Tensor | None) -> tuple[Any, ...]:
    dq, dk, dv = _gradients_of(ctx, dy, dlse)
    return dq, dk, dv, None, None, None, None, None, None


def _gradients_of(
    ctx: Any, dy: torch.Tensor | None, dlse: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    operands = _saved(ctx)
    _tangents.refuse_tangents("the backward of ring_attention", dy, dlse)
    number = getattr(ctx, "number", None)
    ring = None if number is None else ring_of(ctx.options[0], ctx.device)
    if ring is not None:
        ring.forward_of_backward = number
    # The call is made even if no loss depends on this rank's rows: the gradients of the other ranks
    # need this rank's keys.
    try:
        if torch.is_grad_enabled():
            gradients = _backward_op(dy, dlse, *operands, *ctx.options)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                gradients = _backward_op(dy, dlse, *operands, *ctx.options)
    finally:
        if ring is not None:
            ring.forward_of_backward = None
    needed = ctx.needs_input_grad
    return tuple(x if needed[i] else None for i, x in enumerate(gradients))


def _saved(ctx: Any) -> tuple[torch.Tensor, ...]:
    """The tensors that the forward saved, or that activation checkpointing computed again."""
    try:
        q, k, v, y, lse = ctx.saved_tensors
    except Exception as failure:
        # PyTorch refuses tensors that were changed in place or freed; a hook or the recomputation
        # of a checkpoint may fail. The other ranks wait for this one, or will in their backward.
        if not was_told(failure):
            tell(ctx.options[0], as_told(failure), ctx.device)
        raise
    if lse.shape != _saved_shape(q.shape[:3], ctx.options[3]):
        error = UnsupportedError(
            "backward: got a checkpointed forward that was computed again outside of its "
            "context_parallel, must be called within it: the second forward saw only the rows of "
            "this rank, or others"
        )
        tell(ctx.options[0], error, q.device)
        raise error
    return q, k, v, y, lse.view(q.shape[:3])


def _saved_shape(shape: Any, sequence_layout: str) -> tuple[int, ...]:
    """[B, H, S] and from one to three dimensions of size 1, as many as tell the layout."""
    return (*shape, *(1,) * (1 + layout_of(sequence_layout).value))


class Differentiable(torch.autograd.Function):
    """The operator with its gradient, for eager code. PyTorch's layer for the registered autograd
    formula would take as long as the rest of a call."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        group_name: str,
        is_causal: bool,
        scale: float | None,
        sequence_layout: str,
    ) -> _Pair:
        inputs = q, k, v, group_name, is_causal, scale, sequence_layout
        both = run_forward(*inputs, True)
        with torch._C._AutoDispatchBelowAutograd():
            _save(ctx, inputs, both)
        if q.device.type == "cpu":
            ctx.number = ring_of(group_name, q.device).forwards
        return both

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        return *_gradients_of(ctx, *gradients), None, None, None, None


differentiable: Any = Differentiable.apply


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: _Triple) -> None:
    ctx.group_name, ctx.device = inputs[7], inputs[2].device


def _second_backward(ctx: Any, *_: Any) -> Any:
    error = UnsupportedError(
        "ring_attention: got a call for a second derivative, must be the first: call backward or "
        "grad without create_graph, or detach the gradient"
    )
    tell(ctx.group_name, error, ctx.device)
    raise error


_library.impl("ring_attention", _forward, "CompositeExplicitAutograd")
_library.impl("ring_attention_backward", _gradients, "CompositeExplicitAutograd")
torch.library.register_fake("baracuda::ring_attention", _fake, lib=_library)
torch.library.register_fake("baracuda::ring_attention_backward", _fake_gradients, lib=_library)
torch.library.register_autograd(
    "baracuda::ring_attention", _backward, setup_context=_save, lib=_library
)
torch.library.register_autograd(
    "baracuda::ring_attention_backward", _second_backward, setup_context=_save_nothing, lib=_library
)
forward_op = torch.ops.baracuda.ring_attention.default
_backward_op = torch.ops.baracuda.ring_attention_backward.default
_compiled.keep(forward_op, _backward_op)
