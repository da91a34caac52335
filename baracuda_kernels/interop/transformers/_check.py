"""Which models a ring can serve, told by their code and configuration."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch

from baracuda_kernels.errors import UnsupportedError

_ROW_BY_ROW = {"full_attention", "attention", "global_attention", "sliding_attention",
               "chunked_attention"}  # fmt: skip
_RECURRENT = re.compile(
    r"Mamba|SSM|Ssd|Rwkv|RWKV|DeltaNet|ShortConv|RgLru|Recurrent|LinearAttention|Retention|xLSTM"
    r"|Lightning|KimiDelta|Hyena"
)
# Heads that read one row of the whole sequence, which lies on one rank.
_ONE_ROW = re.compile(
    r"For(SequenceClassification|MultipleChoice|NextSentencePrediction|PreTraining)$"
)


def require(model: Any, total: int | None, own_name: str | None) -> None:
    """Raise for a model whose answer from a ring would be another one.

    Parameters
    ----------
    model : PreTrainedModel
    total : int, optional
        Rows of the whole sequence; the longest that the model takes by default.
    own_name : str, optional
        The registered ``attn_implementation``; None within `context_parallel`.
    """
    kind, config = type(model).__name__, model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"{kind}: is an encoder with a decoder, whose rows no ring deals out"
        )
    if not takes_positions(model):
        raise UnsupportedError(
            f"{kind}: its forward takes no position_ids, so it would place the rows of every rank "
            "at the beginning of the sequence"
        )
    if _ONE_ROW.search(kind) or any(
        name.split(".")[-1] == "pooler" for name, _ in model.named_modules()
    ):
        raise UnsupportedError(
            f"{kind}: reads one row of the whole sequence (a pooler or a classification of "
            "sequences), which lies on one rank; take the model without it "
            "(add_pooling_layer=False) and read that row of unshard's"
        )
    _refuse_recurrence(kind, model, config)
    _refuse_positions_in_scores(kind, config)
    _refuse_windows(kind, config, total)
    _refuse_changing_frequencies(kind, model, config, total)
    _refuse_other_code(kind, model, own_name)


def takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _refuse_recurrence(kind: str, model: Any, config: Any) -> None:
    for layer in getattr(config, "layer_types", None) or ():
        if layer not in _ROW_BY_ROW:
            raise UnsupportedError(
                f"{kind}: config.layer_types has {layer!r}, which mixes rows by another means than "
                "attention"
            )
    if getattr(config, "trigram_input", False):
        raise UnsupportedError(
            f"{kind}: config.trigram_input is True, which mixes the rows of a shard"
        )
    for name, module in model.named_modules():
        mixing = isinstance(module, torch.nn.RNNBase) or (
            isinstance(module, torch.nn.Conv1d) and module.kernel_size[0] > 1
        )
        if mixing or _RECURRENT.search(type(module).__name__):
            raise UnsupportedError(
                f"{kind}: {name or 'it'} is a {type(module).__name__}, which mixes rows by another "
                "means than attention"
            )


def _refuse_positions_in_scores(kind: str, config: Any) -> None:
    if getattr(config, "alibi", False):
        raise UnsupportedError(f"{kind}: config.alibi is True, and no kernel adds to the scores")
    embedding = getattr(config, "position_embedding_type", None)
    if isinstance(embedding, str) and (embedding.startswith("relative") or embedding == "alibi"):
        raise UnsupportedError(
            f"{kind}: config.position_embedding_type is {embedding!r}, and no kernel adds to the "
            "scores"
        )


def _refuse_windows(kind: str, config: Any, total: int | None) -> None:
    if total is None:
        total = getattr(config, "max_position_embeddings", None)
    # Where attributes differ between layers, the whole's raises.
    for part in getattr(config, "per_layer_config", None) or (config,):
        _refuse_windows_of(kind, part, total)


def _refuse_windows_of(kind: str, config: Any, total: int | None) -> None:
    types = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    for name, layer in (
        ("sliding_window", "sliding_attention"),
        ("attention_chunk_size", "chunked_attention"),
        ("window_size", "local"),
        ("local_attention", "sliding_attention"),
    ):
        window = getattr(config, name, None)
        if not isinstance(window, int) or window <= 0 or (types and layer not in types):
            continue
        if name == "sliding_window" and getattr(config, "use_sliding_window", True) is False:
            continue
        if name in ("window_size", "local_attention") and not types:
            continue
        if total is None or window < total:
            raise UnsupportedError(
                f"{kind}: config.{name} is {window}, and no kernel serves a window; must be as "
                f"long as the sequence{'' if total is None else f', {total} rows'}"
            )


def _refuse_changing_frequencies(kind: str, model: Any, config: Any, total: int | None) -> None:
    """Rotary embeddings that change with the longest position would differ between the ranks."""
    longest = getattr(config, "max_position_embeddings", None)
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        for rope_type in types.values() if isinstance(types, dict) else (types,):
            if rope_type == "longrope":
                limit = _original_length(config)
            elif isinstance(rope_type, str) and "dynamic" in rope_type:
                limit = longest
            else:
                continue
            rows = longest if total is None else total
            if rows is None or limit is None or rows > limit:
                raise UnsupportedError(
                    f"{kind}: its rotary embeddings are {rope_type!r}, which change with the longest "
                    f"position that a rank has; the sequence, {rows} rows, must have no more than "
                    f"{limit}"
                )


def _original_length(config: Any) -> int | None:
    """The longest sequence that "longrope" leaves as it is."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    name = "original_max_position_embeddings"
    found = [
        part[name] for part in (rope, *rope.values()) if isinstance(part, dict) and name in part
    ]
    return min(found, default=getattr(config, name, None))


def _refuse_other_code(kind: str, model: Any, own_name: str | None) -> None:
    chosen = getattr(model.config, "_attn_implementation", None)
    if own_name is None:
        if chosen not in (None, "sdpa"):
            raise UnsupportedError(
                f'{kind}: attn_implementation is {chosen!r}, must be "sdpa" within context_parallel'
            )
    elif not getattr(model, "_supports_attention_backend", True):
        raise UnsupportedError(
            f"{kind}: its code does not look up attn_implementation, and {own_name!r} would do "
            'nothing; try context_parallel around attn_implementation="sdpa"'
        )
