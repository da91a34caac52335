"""The ring in place of ``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import flex_attention
from torch.overrides import TorchFunctionMode

from baracuda_kernels import SequenceLayout
from baracuda_kernels._arguments import layout_of
from baracuda_kernels.errors import BaracudaError, InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.torch import _below, _entered, _late_import, _process_group
from baracuda_kernels.interop.torch._entered import innermost
from baracuda_kernels.interop.torch._op import attend, device_of
from baracuda_kernels.interop.torch._refusal import in_compiled_code, tell


def context_parallel(
    group: Any = None,
    *,
    sequence_layout: SequenceLayout | str = "contiguous",
) -> TorchFunctionMode:
    """Context in which ``scaled_dot_product_attention`` attends over the whole ring.

    Use it in a ``with`` statement. Gradients are those of the whole ring. If a model checkpoints
    its activations, call ``backward`` within the context too, since it computes attention again.

    Give the model this rank's rows (`shard`) and their global positions (`position_ids`). Layers
    that work row by row need no change. The context holds for this thread. Under autocast, q, k and
    v are cast as PyTorch's own function casts them. Calls from ``nn.MultiheadAttention``,
    TorchScript and exported graphs are caught too. The page "What context_parallel catches" lists
    what is not caught.

    Parameters
    ----------
    group : ProcessGroup or DeviceMesh of one dimension, optional
        By default the default group.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.

    Raises
    ------
    InvalidProblemError
        The group or layout is wrong. A context is ended before one within it, or in another thread;
        it lasts then. Inside the context: as `ring_attention`.
    UnsupportedError
        Inside the context: a mask tensor, dropout, queries that continue a cache (one row, or
        causal, with another number of keys), attention that is written out or fused, a recurrence
        or convolution over the rows, or a model of transformers that `interop.transformers.check`
        refuses. No call falls back to attention over the local rows.
    """
    name = _process_group.name_of(group)
    if torch.compiler.is_compiling():  # the operator's fake implementation checks the layout
        return _RingMode(name, sequence_layout)
    return _EagerRingMode(name, layout_of(sequence_layout).name)


class _RingMode(TorchFunctionMode):
    def __init__(self, group_name: str, layout: SequenceLayout | str) -> None:
        super().__init__()
        self.group_name = group_name
        self.layout = layout

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        check = _CHECKS.get(func)
        if check is not None:
            reason, results = check(*args, **(kwargs or {}))
            if reason:
                error = UnsupportedError(reason)
                if torch.compiler.is_compiling():
                    query, value = args[0], args[2] if func is _flex else args[0]
                    y = in_compiled_code(query, value, self.group_name, error)
                    return y if results == 1 else (y,) * results
                tell(self.group_name, error, device_of(*args))
                raise error
        return func(*args, **(kwargs or {}))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        unseen: bool = False,
    ) -> torch.Tensor:
        """The ring's attention. `unseen`: a compiler does not see that it is that of a context."""
        try:
            _check(query, key, value)
            reason = _refusal(query, key, attn_mask, dropout_p, is_causal)
            if reason:
                raise UnsupportedError(reason)
            _check_heads(query, key, enable_gqa)
            rows = query.shape[:-1]
            if query.dim() != 4:
                query, key, value = _of_four_dimensions(query, key, value)
        except BaracudaError as error:
            if torch.compiler.is_compiling():
                return in_compiled_code(query, value, self.group_name, error)
            tell(self.group_name, error, device_of(query, key, value))
            raise
        y, _ = attend(query, key, value, self.group_name, is_causal, scale, self.layout, unseen)
        return y if len(rows) == 3 else y.reshape(*rows, y.shape[-1])


class _EagerRingMode(_RingMode):
    """The context in eager code: also below the function layer, and in transformers' tables."""

    def __enter__(self) -> Any:
        _late_import.check_models()
        _check_varlen()
        guard = _below.guard(_attend_below, _tell_below)
        guard.__enter__()
        _entered.enter(self, guard)
        return TorchFunctionMode.__enter__(self)

    def __exit__(self, *exc_info: object) -> None:
        if _entered.entered() is not self:  # PyTorch would end the innermost one instead
            raise InvalidProblemError(
                "context_parallel: got the end of a context that is not the innermost of this "
                "thread, must be ended in the thread that entered it, after those within it"
            )
        TorchFunctionMode.__exit__(self, *exc_info)
        _entered.leave().__exit__(*exc_info)


_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def _attend_below(*args: Any) -> torch.Tensor:
    mode = innermost()
    if mode is None:  # this torch passes nothing on to autograd's threads
        raise UnsupportedError(
            "scaled_dot_product_attention: got a checkpointed call in a thread of autograd, which "
            "does not know its context_parallel, must be ring_attention"
        )
    # An exported graph may be called outside of the context; compiled code belongs to it.
    y: torch.Tensor = mode.attend(*args, unseen=not _is_exporting())
    return y


def _tell_below(error: UnsupportedError, args: tuple[Any, ...]) -> None:
    mode = innermost()
    if mode is not None:
        tell(mode.group_name, error, device_of(*args))


def refuse_decode(query: torch.Tensor, key: torch.Tensor, is_causal: bool) -> None:
    """Raise for queries that continue a cache: the layout has no positions for their rows."""
    if reason := _decode_refusal(query, key, is_causal):
        raise UnsupportedError(reason)


def _decode_refusal(query: torch.Tensor, key: torch.Tensor, is_causal: bool) -> str:
    rows, keys = query.shape[-2], key.shape[-2]
    if rows == keys or not (is_causal or rows == 1):
        return ""
    # A compiler cannot write a number that it keeps open.
    got, own = "another number of rows", "the keys"
    if not torch.compiler.is_compiling():
        got, own = f"{rows} rows", f"the {keys} keys"
    return (
        f"query: got {got}, must be as many as {own} of this rank: decoding against a sharded "
        "cache is not built"
    )


def _refusal(
    query: torch.Tensor,
    key: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
) -> str:
    """Why a call of attention is refused; empty if it is not."""
    compiling = torch.compiler.is_compiling()
    if attn_mask is not None:
        shape = "" if compiling else f" of shape {tuple(attn_mask.shape)}"
        return (
            f"attn_mask: got a tensor{shape}, must be None: the ring masks by is_causal alone; "
            "give is_causal in place of a causal mask, and no padding"
        )
    if dropout_p != 0.0:
        given = "another value" if compiling else dropout_p
        return f"dropout_p: got {given}, must be 0; call model.eval()"
    return _decode_refusal(query, key, is_causal)


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, torch.Tensor):
            raise InvalidProblemError(f"{name}: got {type(x).__name__}, must be a torch.Tensor")
        if x.dim() < 2 or x.dim() != query.dim():
            raise InvalidProblemError(
                f"{name}: got {x.dim()} dimensions, must have at least 2, and as many as query, "
                f"{query.dim()}"
            )


def _check_heads(query: torch.Tensor, key: torch.Tensor, enable_gqa: bool) -> None:
    # A single head of keys is broadcast over the heads of the queries, as in PyTorch.
    if enable_gqa or query.dim() <= 2:
        return
    heads, own = key.shape[-3], query.shape[-3]
    if heads != 1 and heads != own:  # Dynamo gets `in` wrong for a number that it keeps open
        got, must = "another number of", "those"
        if not torch.compiler.is_compiling():
            got, must = str(heads), f"the {own}"
        raise InvalidProblemError(
            f"key: got {got} heads, must be {must} of query without enable_gqa=True"
        )


def _of_four_dimensions(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """[..., H, S, D] as [B, H, S, D]: the dimensions before the heads become one."""
    shape = tensors[0].shape
    for name, x in zip(("key", "value"), tensors[1:], strict=True):
        if x.shape[:-3] != shape[:-3]:
            got, must = "another shape", ""
            if not torch.compiler.is_compiling():
                got, must = f"shape {tuple(x.shape)}", f", {tuple(shape[:-3])}"
            raise InvalidProblemError(
                f"{name}: got {got}, must have the leading dimensions of query{must}"
            )
    if len(shape) == 2:
        return [x[None, None] for x in tensors]
    return [x[None] if len(shape) == 3 else x.flatten(0, -4) for x in tensors]


# The reason of a refusal, empty if there is none; and the number of results of the call.
_Verdict = tuple[str, int]


def _check_multi_head(
    query: Any, key: Any, value: Any, width: Any, heads: Any, w: Any, b: Any,
    bias_k: Any = None, bias_v: Any = None, add_zero_attn: bool = False, *args: Any, **options: Any,
) -> _Verdict:  # fmt: skip
    # nn.MultiheadAttention: after add_zero_attn come dropout_p, the two of out_proj, training,
    # key_padding_mask and need_weights.
    need_weights = options.get("need_weights", args[5] if len(args) > 5 else True)
    reason = ""
    if bias_k is not None or bias_v is not None:
        reason = "add_bias_kv: got True, must be False: every rank would add a key"
    elif add_zero_attn:
        reason = "add_zero_attn: got True, must be False: every rank would add a key"
    elif need_weights:
        reason = "need_weights: got True, must be False: no rank has the weights of all rows"
    return reason, 2


def _check_softmax(input: Any, dim: int | None = None, *_: Any, **__: Any) -> _Verdict:
    return "" if dim is None else _below.scores_refusal(input.shape, dim), 1


_flex = torch.ops.higher_order.flex_attention
# y and lse; in later versions of torch also the largest scores.
_FLEX_RESULTS = 3 if hasattr(flex_attention, "AuxRequest") else 2


def _refuse_calls(name: str, results: int) -> Any:
    def check(*args: Any, **options: Any) -> _Verdict:
        return (
            f"{name}: got a call within context_parallel, must be "
            "F.scaled_dot_product_attention: it would see only the rows of this rank"
        ), results

    return check


_CHECKS: dict[Any, Any] = {
    functional.multi_head_attention_forward: _check_multi_head,
    functional.softmax: _check_softmax,
    torch.softmax: _check_softmax,
    torch.Tensor.softmax: _check_softmax,
    _flex: _refuse_calls("flex_attention", _FLEX_RESULTS),
}


def _check_varlen() -> None:
    """Refuse varlen_attn by name in compiled code, too. If it is imported later, _below refuses it."""
    if "torch.nn.attention.varlen" not in sys.modules:
        return
    for name, results in _below.VARLEN.items():
        packet = getattr(torch.ops.torch_attn, name, None)
        if packet is not None:
            _CHECKS[packet] = _CHECKS[packet.default] = _refuse_calls("varlen_attn", results)
