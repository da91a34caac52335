"""The checks of a whole model's call, and transformers' tables within `context_parallel`."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, GenerationMixin, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from baracuda_kernels.errors import BaracudaError, UnsupportedError
from baracuda_kernels.interop.torch._entered import entered, innermost
from baracuda_kernels.interop.torch._refusal import tell
from baracuda_kernels.interop.transformers import _attention, _check
from baracuda_kernels.interop.transformers._attention import Ring

_OTHER_CODE = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")

_LABELS = (
    "labels: got a tensor, must be left out: the model would shift them within the rows of this "
    "rank. BatchSharder makes the targets and the loss of the whole sequence"
)
# Targets of other losses, and outputs made of one row of the sequence.
_TARGETS = ("start_positions", "end_positions", "mc_labels", "next_sentence_label")
_OF_ONE_ROW = ("pooler_output", "text_embeds", "mc_logits")
_NO_POSITIONS = (
    "position_ids: got None, must be interop.torch.position_ids(rows, ...).unsqueeze(0): every "
    "rank would place its rows at the beginning of the sequence"
)

registered: dict[str, Callable[[], Ring]] = {}
_installed = False


class _Thread(threading.local):
    def __init__(self) -> None:
        self.within = False
        self.attentions = 0


_thread = _Thread()
_required: weakref.WeakKeyDictionary[Any, tuple[Any, ...]] = weakref.WeakKeyDictionary()


def install() -> None:
    """Check every call of a whole model that reaches a ring; others pass unchanged."""
    global _installed
    if _installed:
        return
    _installed = True
    original = PreTrainedModel.__call__

    @functools.wraps(original)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        if _thread.within:
            return original(self, *args, **options)
        if torch.compiler.is_compiling():
            args, options = _refuse_when_run(self, args, options)
            return original(self, *args, **options)
        found = ring_of(self)
        if found is None:
            return original(self, *args, **options)
        ring, own_name = found
        _thread.within, _thread.attentions = True, 0
        try:
            _before(self, ring, own_name, args, options)
            answer = original(self, *args, **options)
            _after(self, ring, answer)
            return answer
        finally:
            _thread.within = False

    PreTrainedModel.__call__ = call  # type: ignore[method-assign]
    _refuse_generate()
    _refuse_names_without_effect()


def _refuse_generate() -> None:
    generate = GenerationMixin.generate

    @functools.wraps(generate)
    def refusing(self: Any, *args: Any, **options: Any) -> Any:
        found = ring_of(self)
        if found is not None and found[0].ranks() > 1:
            error = UnsupportedError(
                f"generate: got a ring of {found[0].ranks()} ranks, must be one rank: every rank "
                "would continue its own rows. Call the model once, and take the last row from "
                "unshard(logits, 1)"
            )
            tell(found[0].group_name, error, self.device)
            raise error
        return generate(self, *args, **options)

    GenerationMixin.generate = refusing  # type: ignore[method-assign]


def _refuse_names_without_effect() -> None:
    chosen = PreTrainedModel.set_attn_implementation

    @functools.wraps(chosen)
    def checked(self: Any, attn_implementation: Any, *args: Any, **options: Any) -> Any:
        answer = chosen(self, attn_implementation, *args, **options)
        found = self.config._attn_implementation
        named = isinstance(attn_implementation, str) and attn_implementation in registered
        if named and found != attn_implementation:
            raise UnsupportedError(
                f"attn_implementation: got {attn_implementation!r} for {type(self).__name__}, must "
                "be "
                '"sdpa" within context_parallel: the code of the model does not look up the name, '
                "which "
                f"stays {found!r}"
            )
        return answer

    PreTrainedModel.set_attn_implementation = checked  # type: ignore[method-assign]


def enter_context() -> None:
    """Put the ring of `context_parallel` into transformers' tables; other threads keep theirs."""
    install()
    attention = AttentionInterface._global_mapping
    for name in ("sdpa", *_OTHER_CODE):
        original = attention.get(name)
        if original is not None and not hasattr(original, "_baracuda"):
            AttentionInterface.register(name, _within_context(name, original))
    original = AttentionMaskInterface._global_mapping.get("sdpa")
    if original is not None and not hasattr(original, "_baracuda"):
        AttentionMaskInterface.register("sdpa", _mask_within_context(original))


def attend(ring: Ring, *args: Any, **options: Any) -> tuple[torch.Tensor, None]:
    _thread.attentions += 1
    return _attention.attention(ring, *args, compared=_thread.within, **options)


def _within_context(name: str, original: Any) -> Any:
    @functools.wraps(original)
    def attention(*args: Any, **options: Any) -> Any:
        mode = innermost()
        if mode is None:
            return original(*args, **options)
        ring = _ring_in(mode)
        if name != "sdpa":
            error = UnsupportedError(
                f'attn_implementation: got {name!r}, must be "sdpa" within context_parallel'
            )
            tell(ring.group_name, error, args[1].device)
            raise error
        return attend(ring, *args, **options)

    attention._baracuda = True  # type: ignore[attr-defined]
    return attention


def _mask_within_context(original: Any) -> Any:
    @functools.wraps(original)
    def mask(*args: Any, **options: Any) -> Any:
        mode = innermost()
        if mode is None:
            return original(*args, **options)
        return _attention.mask(_ring_in(mode), *args, **options)

    mask._baracuda = True  # type: ignore[attr-defined]
    return mask


def ring_of(model: Any) -> tuple[Ring, str | None] | None:
    """The ring that a call of this model reaches, and the name it is registered by."""
    mode = innermost()
    return _named(model) if mode is None else (_ring_in(mode), None)


def _ring_in(mode: Any) -> Ring:
    return Ring(mode.group_name, str(mode.layout))


def _named(model: Any) -> tuple[Ring, str | None] | None:
    config = getattr(model, "config", None)
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    for part in parts:
        name = getattr(part, "_attn_implementation", None)
        if name in registered:
            return registered[name](), name
    return None


def require(model: Any, total: int | None, own_name: str | None) -> None:
    """`_check.require`, once for each length."""
    if _required.get(model) != (total, own_name):
        _check.require(model, total, own_name)
        _required[model] = (total, own_name)


def _before(
    model: Any, ring: Ring, own_name: str | None, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    device = None
    try:
        given = inspect.signature(model.forward).bind_partial(*args, **options).arguments
        given = {**given, **given.pop("kwargs", {})}
        tokens = _tokens(given)
        device = None if tokens is None else tokens.device
        rows = None if tokens is None else tokens.shape[1]
        total = None if rows is None else rows * ring.ranks()
        require(model, total, own_name)
        _refuse_arguments(model, given, ring)
        positions = given.get("position_ids")
        if positions is not None and rows is not None:
            _attention.compare_positions(positions, rows, ring, first_position(model))
        elif ring.ranks() > 1:
            raise UnsupportedError(_NO_POSITIONS)
    except BaracudaError as error:
        tell(ring.group_name, error, device)
        raise


def _refuse_when_run(
    model: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call that is compiled. If it has labels or no positions, its tokens pass
    an operator that refuses them on a ring of several ranks: a compiler would wrap an error that is
    raised here. Other checks read values that a compiler does not have."""
    mode = entered()  # a compiler cannot trace `innermost`
    found = _named(model) if mode is None else (_ring_in(mode), None)
    if found is None:
        return args, options
    given = inspect.signature(model.forward).bind_partial(*args, **options).arguments
    if given.get("position_ids") is None:
        reason = _NO_POSITIONS
    elif given.get("labels") is not None:
        reason = _LABELS
    else:
        return args, options
    # A model within a model may get embedded rows with their rotations, and no positions.
    names = ("input_ids", "inputs_embeds") if isinstance(model, GenerationMixin) else ("input_ids",)
    for name in names:
        if isinstance(given.get(name), torch.Tensor):
            given[name] = torch.ops.baracuda.of_one_rank(given[name], found[0].group_name, reason)
            return (), {**given, **given.pop("kwargs", {})}
    return args, options


def _after(model: Any, ring: Ring, answer: Any) -> None:
    kind = type(model).__name__
    layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 1)
    if _thread.attentions < layers and not _has_compiled_parts(model):
        error = UnsupportedError(
            f"{kind}: got {_thread.attentions} calls of the ring, must be one for each of its "
            f"{layers} layers: the others attended to the rows of one rank only, or to none"
        )
        # A rank that skipped a layer by chance (layerdrop) leaves the others in the ring.
        tell(ring.group_name, error, model.device)
        raise error
    if ring.ranks() > 1 and isinstance(answer, dict):
        for name in _OF_ONE_ROW:
            if answer.get(name) is not None:
                raise UnsupportedError(
                    f"{kind}.{name}: got a tensor that is made of one row of the whole sequence, "
                    "must be left out: only one rank holds the row. Take a model without this head, "
                    "and the row from unshard()"
                )
        if answer.get("aux_loss") is not None:
            raise UnsupportedError(
                f"{kind}.aux_loss: got a loss of the routers over the rows of this rank, must be left "
                "out: call the model with output_router_logits=False"
            )


def _has_compiled_parts(model: Any) -> bool:
    """Whether calls of the ring may be in compiled code, where they are not counted."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def _tokens(given: dict[str, Any]) -> torch.Tensor | None:
    for name in ("input_ids", "inputs_embeds"):
        tokens = given.get(name)
        if isinstance(tokens, torch.Tensor) and tokens.dim() >= 2:
            return tokens
    return None


def _refuse_arguments(model: Any, given: dict[str, Any], ring: Ring) -> None:
    if ring.ranks() > 1:
        if given.get("labels") is not None:
            raise UnsupportedError(_LABELS)
        for name in _TARGETS:
            if given.get(name) is not None:
                raise UnsupportedError(
                    f"{name}: got a tensor, must be left out: the loss would be one over the rows "
                    "of this rank"
                )
    _attention.refuse_packed(given)
    for name in ("past_key_values", "cache", "cache_params"):
        length = getattr(given.get(name), "get_seq_length", int)()
        if isinstance(length, int) and length:
            raise UnsupportedError(
                f"{name}: got {length} rows, must be empty: decoding against a sharded cache is "
                "not built"
            )
    for name, value in given.items():
        if value is not None and name.startswith(
            ("pixel_values", "image_", "video_", "input_feat")
        ):
            raise UnsupportedError(f"{name}: got a value, must be left out: only text is sharded")
    if given.get("token_type_ids") is not None and hasattr(model.config, "vision_config"):
        raise UnsupportedError(
            "token_type_ids: got a value, must be left out: the ring masks by causality alone"
        )


def first_position(model: Any) -> int:
    """The position of a model's first row: 0, or in models like RoBERTa the padding's position plus
    one."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx) + 1
    return 0
