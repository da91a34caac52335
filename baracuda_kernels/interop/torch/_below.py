"""Catches calls below PyTorch's function layer: from C++, TorchScript and exported graphs.

Overridable functions of ``torch.nn`` turn off every function mode before they call others.
TorchScript and exported graphs never use the function layer. But all of them use the dispatcher. So
the kernels here are registered at a dispatch key that no tensor has. A context adds the key to the
set of its thread; outside a context no operator uses it. The key is above autograd, where
``scaled_dot_product_attention`` is still one operator.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from baracuda_kernels.errors import UnsupportedError

_KEY_NAME = "TESTING_ONLY_GenericMode"
_KEY = torch._C._dispatch_key_parse(_KEY_NAME)

# Attention operators that the ring cannot replace.
_ATTENTION = (
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
    "_flash_attention_forward",
    "_flash_attention_forward_no_dropout_inplace",
    "_cudnn_attention_forward",
    "_efficient_attention_forward",
    "_triton_multi_head_attention",
)
# Of torch.nn.attention.varlen, and the number of their results. Each calls an operator of the tuple
# above in its kernel; but there the key of this module may be excluded, as under a dispatch mode.
# Their module takes seconds to import, so it need not be imported yet.
VARLEN = {"_varlen_attn": 3, "_varlen_attn_out": 1}
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")

_libraries: list[torch.library.Library] = []
_lock = threading.Lock()  # threads may enter their first contexts at once


def guard(
    attend: Callable[..., torch.Tensor], refuse: Callable[[UnsupportedError, tuple[Any, ...]], None]
) -> Any:
    """Context manager that turns on the kernels in this thread.

    ``attend`` and ``refuse`` must be the same in every call: they find the thread's innermost
    context.
    """
    with _lock:
        if not _libraries:
            _register(attend, refuse)
    return torch._C._IncludeDispatchKeyGuard(_KEY)


def scores_refusal(shape: Any, dim: int) -> str:
    """Why a softmax over `dim` is refused: its operand has the shape of attention scores, as in an
    attention that is written out. Empty for any other shape."""
    if len(shape) < 3 or dim % len(shape) != len(shape) - 1:
        return ""
    rows, columns = shape[-2], shape[-1]
    # Four dimensions are [B, H, S, S]. Three may be [B * H, S, S], or [B, S, experts].
    if len(shape) > 3 or (rows > 1 and columns > 1 and rows in (columns, columns - 1)):
        # A compiler cannot write a number that it keeps open.
        given = "" if torch.compiler.is_compiling() else f" {tuple(shape)}"
        return (
            f"softmax: got scores{given} of an attention that is written out, must be "
            "F.scaled_dot_product_attention: it would see only the rows of this rank "
            "(transformers: "
            'attn_implementation="sdpa"; nn.MultiheadAttention: need_weights=False)'
        )
    return ""


def _refuse_scores(x: torch.Tensor, dim: int, *_: Any) -> None:
    if reason := scores_refusal(x.shape, dim):
        raise UnsupportedError(reason)


def _refuse_masked_scores(x: torch.Tensor, mask: torch.Tensor, dim: Any = None, *_: Any) -> None:
    _refuse_scores(x, -1 if dim is None else dim)


def _register(
    attend: Callable[..., torch.Tensor], refuse: Callable[[UnsupportedError, tuple[Any, ...]], None]
) -> None:
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, _KEY_NAME)
    aten = torch.library.Library("aten", "IMPL")
    varlen = torch.library.Library("torch_attn", "IMPL")

    def sdpa(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        return attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    def checked(name: str, check: Callable[..., None]) -> None:
        base, _, overload = name.partition(".")
        packet = getattr(torch.ops.aten, base, None)
        if packet is None or (overload or "default") not in packet.overloads():
            return  # this torch does not have the operator
        op = getattr(packet, overload or "default")
        checking = _refusing(check, refuse)

        def kernel(keyset: Any, *args: Any, **options: Any) -> Any:
            checking(*args)
            return op.redispatch(keyset.remove(_KEY), *args, **options)

        aten.impl(name, kernel, _KEY_NAME, with_keyset=True)

    aten.impl("scaled_dot_product_attention", sdpa, _KEY_NAME)
    for name in _ATTENTION:
        checked(name, _refuse_all(f"aten::{name}"))
    for name in VARLEN:
        varlen.impl(name, _refusing(_refuse_all(f"torch_attn::{name}"), refuse), _KEY_NAME)
    for name in _RECURRENT:
        checked(f"{name}.input", _refuse_recurrence(name))
        checked(f"{name}.data", _refuse_recurrence(name))  # of a PackedSequence
    checked("_softmax", _refuse_scores)
    checked("_masked_softmax", _refuse_masked_scores)
    checked("convolution", _refuse_convolution)
    checked("_convolution", _refuse_convolution)  # traced and frozen graphs call it
    checked("mkldnn_convolution", _refuse_convolution)
    _libraries.extend((everything, aten, varlen))


def _refusing(
    check: Callable[..., None], refuse: Callable[[UnsupportedError, tuple[Any, ...]], None]
) -> Callable[..., None]:
    """The check; before it raises, the other ranks are told."""

    def checking(*args: Any, **options: Any) -> None:
        try:
            check(*args)
        except UnsupportedError as error:
            refuse(error, args)
            raise

    return checking


def _refuse_all(name: str) -> Callable[..., None]:
    def check(*args: Any) -> None:
        raise UnsupportedError(
            f"{name}: got a call within context_parallel, must be "
            "F.scaled_dot_product_attention: it would see only the rows of this rank (do not "
            "script nn.TransformerEncoderLayer, which then calls a fused operator)"
        )

    return check


def _refuse_recurrence(name: str) -> Callable[..., None]:
    def check(*args: Any) -> None:
        raise UnsupportedError(
            f"aten::{name}: got a call within context_parallel, must be outside: the recurrence "
            "would see only the rows of this rank"
        )

    return check


def _refuse_convolution(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> None:
    if weight.dim() == 3 and weight.shape[2] > 1:
        raise UnsupportedError(
            f"conv1d: got a kernel of {weight.shape[2]} rows, must be 1 row within "
            "context_parallel: it would see only the rows of this rank"
        )
