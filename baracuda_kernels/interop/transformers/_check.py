"""Which models a ring can serve, judged by their code and configuration."""

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
# Heads that read one row of the whole sequence. Only one rank holds it.
_ONE_ROW = re.compile(
    r"For(SequenceClassification|MultipleChoice|NextSentencePrediction|PreTraining)$"
)


def require(model: Any, total: int | None, own_name: str | None) -> None:
    """Raise for a model whose answer from a ring would differ from that of one process.

    Parameters
    ----------
    model : PreTrainedModel
    total : int, optional
        Rows of the whole sequence; by default the most that the model takes.
    own_name : str, optional
        The registered ``attn_implementation``; None within `context_parallel`.
    """
    kind, config = type(model).__name__, model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"{kind}: got an encoder with a decoder, must be one of them: a ring has one sequence"
        )
    if not takes_positions(model):
        raise UnsupportedError(
            f"{kind}.forward: got no parameter position_ids, must have it: every rank would place "
            "its rows at the beginning of the sequence"
        )
    if _ONE_ROW.search(kind) or any(
        name.split(".")[-1] == "pooler" for name, _ in model.named_modules()
    ):
        raise UnsupportedError(
            f"{kind}: got a head that reads one row of the whole sequence (a pooler or a sequence "
            "classifier), must have none: only one rank holds the row. Take the model without the "
            "head (add_pooling_layer=False), and the row from unshard()"
        )
    _refuse_recurrence(kind, model, config)
    _refuse_positions_in_scores(kind, config)
    _refuse_windows(kind, config, total)
    _refuse_changing_frequencies(kind, model, config, total)
    _refuse_local_positions(kind, model, config, total)
    _refuse_other_code(kind, model, own_name)


def takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _refuse_recurrence(kind: str, model: Any, config: Any) -> None:
    for layer in getattr(config, "layer_types", None) or ():
        if layer not in _ROW_BY_ROW:
            raise UnsupportedError(
                f"{kind}.config.layer_types: got {layer!r}, must be attention: another layer would "
                "mix the rows of one rank only"
            )
    if getattr(config, "trigram_input", False):
        raise UnsupportedError(
            f"{kind}.config.trigram_input: got True, must be False: it would mix the rows of one "
            "rank only"
        )
    for name, module in model.named_modules():
        mixing = isinstance(module, torch.nn.RNNBase) or (
            isinstance(module, torch.nn.Conv1d) and module.kernel_size[0] > 1
        )
        if mixing or _RECURRENT.search(type(module).__name__):
            raise UnsupportedError(
                f"{'.'.join(filter(None, (kind, name)))}: got a {type(module).__name__}, must not "
                "mix rows: it would mix those of one rank only"
            )


def _refuse_positions_in_scores(kind: str, config: Any) -> None:
    if getattr(config, "alibi", False):
        raise UnsupportedError(
            f"{kind}.config.alibi: got True, must be False: no kernel adds a bias to the scores"
        )
    embedding = getattr(config, "position_embedding_type", None)
    if isinstance(embedding, str) and (embedding.startswith("relative") or embedding == "alibi"):
        raise UnsupportedError(
            f"{kind}.config.position_embedding_type: got {embedding!r}, must be one without a "
            "bias: no kernel adds a bias to the scores"
        )


def _refuse_windows(kind: str, config: Any, total: int | None) -> None:
    if total is None:
        total = getattr(config, "max_position_embeddings", None)
    # If an attribute differs between layers, reading it from the whole configuration raises.
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
                f"{kind}.config.{name}: got {window}, must be at least "
                f"{'' if total is None else f'{total}, '}the rows of the sequence: no kernel "
                "serves a window"
            )


def _refuse_changing_frequencies(kind: str, model: Any, config: Any, total: int | None) -> None:
    """Refuse rotary embeddings that change with the longest position: it differs between ranks."""
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
                    f"{kind}: got {rope_type!r} rotary embeddings for {rows} rows, must be for at "
                    f"most {limit}: beyond, they change with the longest position of a rank"
                )


def _refuse_local_positions(kind: str, model: Any, config: Any, total: int | None) -> None:
    """Refuse the layers of Llama 4 without rotary embeddings, where they scale their queries: they
    count the rows of the call, and do not read ``position_ids``."""
    rows = getattr(config, "max_position_embeddings", None) if total is None else total
    for name, module in model.named_modules():
        limit = getattr(module, "floor_scale", None)
        if limit is None or getattr(module, "use_rope", True):
            continue
        if getattr(module, "attn_temperature_tuning", False) and (rows is None or rows >= limit):
            raise UnsupportedError(
                f"{kind}.{name}: got attn_temperature_tuning for {rows} rows, must be for fewer "
                f"than {limit} (config.floor_scale): from there on, the layer scales a query by "
                "its row within the rank"
            )


def _original_length(config: Any) -> int | None:
    """The rows of the longest sequence for which "longrope" does not change."""
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
                f'attn_implementation: got {chosen!r} for {kind}, must be "sdpa" within '
                "context_parallel"
            )
    elif not getattr(model, "_supports_attention_backend", True):
        raise UnsupportedError(
            f'attn_implementation: got {own_name!r} for {kind}, must be "sdpa" within '
            "context_parallel: the code of the model does not look up the name"
        )
