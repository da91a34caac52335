"""A whole batch before it is cut: what it may hold, its targets, its length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from baracuda_kernels import sharding
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.transformers import _attention, _models

TOKENS = ("input_ids", "inputs_embeds")
_KNOWN = (*TOKENS, "labels", "shift_labels", "attention_mask", "position_ids")


def require_model(model: Any) -> None:
    """Raise for a model that the targets or the padding of a causal one do not suit."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise InvalidProblemError(
            f"model: got {type(model).__name__}, must be a PreTrainedModel; give the model itself "
            "where that is a wrapper"
        )
    kind = type(model).__name__
    for name, module in model.named_modules():
        if getattr(module, "is_causal", True) is False:
            raise UnsupportedError(
                f"{kind}: {name} is not causal, and the targets are those of a causal model"
            )
    if getattr(model.config.get_text_config(decoder=True), "output_router_logits", False):
        raise UnsupportedError(
            f"{kind}: config.output_router_logits is True, and the routers' loss is one of the "
            "whole sequence; must be False"
        )


def prepare(
    model: Any,
    batch: Any,
    world_size: int,
    own_name: str | None,
    pad: bool,
    ignore_index: int,
) -> dict[str, torch.Tensor]:
    """Tokens, and ``shift_labels`` where there are labels, of a length that the ring can cut.

    Nothing is sent. The tensors lie where the batch's do.
    """
    given = _tensors(batch)
    name, tokens = _tokens(given)
    rows = tokens.shape[1]
    mask = _right_padding(given.get("attention_mask"), tokens)
    _require_positions(given.get("position_ids"), _models.first_position(model), tokens, mask)
    targets = _targets(given, tokens, mask, ignore_index)
    length = _length(model, rows, world_size, pad)
    _models.require(model, length, own_name)
    whole = {name: _behind(tokens, length - rows, 0)}
    if targets is not None:
        whole["shift_labels"] = _behind(targets, length - rows, ignore_index)
    return whole


def _tensors(batch: Any) -> dict[str, torch.Tensor]:
    if not isinstance(batch, Mapping):
        raise InvalidProblemError(f"batch: got {type(batch).__name__}, must be a mapping")
    given = {name: value for name, value in batch.items() if value is not None}
    _attention.refuse_packed(given)
    for name, value in given.items():
        if name not in _KNOWN:
            raise UnsupportedError(
                f"{name}: is in the batch, and it is not known how to cut it; must be left out "
                f"(served are {', '.join(_KNOWN)})"
            )
        if not isinstance(value, torch.Tensor):
            raise InvalidProblemError(
                f"{name}: got {type(value).__name__}, must be a torch.Tensor; collators make "
                "them by return_tensors='pt'"
            )
    return given


def _tokens(given: dict[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    found = [name for name in TOKENS if name in given]
    if len(found) != 1:
        raise InvalidProblemError(
            f"batch: has {sorted(given)}, must have input_ids or inputs_embeds"
        )
    (name,) = found
    tokens = given[name]
    if name == "input_ids" and (tokens.dim() != 2 or tokens.is_floating_point()):
        raise InvalidProblemError(
            f"input_ids: got {tokens.dtype} {tuple(tokens.shape)}, must be integers [B, N]"
        )
    if name == "inputs_embeds" and tokens.dim() != 3:
        raise InvalidProblemError(
            f"inputs_embeds: got shape {tuple(tokens.shape)}, must be [B, N, E]"
        )
    if tokens.shape[1] == 0:
        raise InvalidProblemError(f"{name}: has no rows, must have one at least")
    return name, tokens


def _require_shape(name: str, value: torch.Tensor, tokens: torch.Tensor) -> None:
    if value.shape != tokens.shape[:2]:
        raise InvalidProblemError(
            f"{name}: got shape {tuple(value.shape)}, must be {tuple(tokens.shape[:2])}, as the "
            "tokens"
        )


def _right_padding(mask: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor | None:
    """Which rows are real, or None if all are. Rows behind a sequence are seen by no row of it."""
    if mask is None:
        return None
    if mask.dim() != 2:
        raise UnsupportedError(
            f"attention_mask: got shape {tuple(mask.shape)}, must be [B, N] or left out: the ring "
            "masks by causality alone"
        )
    _require_shape("attention_mask", mask, tokens)
    real = mask != 0
    if bool(((mask != 0) & (mask != 1)).any()):
        raise UnsupportedError(
            "attention_mask: has numbers besides 0 and 1 (of packed sequences, say), and the ring "
            "attends to one sequence for each row of the batch"
        )
    if bool(real.all()):
        return None
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise UnsupportedError(
            "attention_mask: has zeros before rows of a sequence, and the ring masks by causality "
            "alone; pad behind the sequences (tokenizer.padding_side = 'right')"
        )
    return real


def _require_positions(
    positions: torch.Tensor | None, first: int, tokens: torch.Tensor, real: torch.Tensor | None
) -> None:
    if positions is None:
        return
    shape = tokens.shape[:2]
    if positions.shape not in (shape[1:], (1, *shape[1:]), shape):
        raise InvalidProblemError(
            f"position_ids: got shape {tuple(positions.shape)}, must be {tuple(shape)}, of the whole "
            "sequence"
        )
    expected = torch.arange(first, first + shape[1], device=positions.device)
    other = (positions != expected).expand(shape)
    if real is not None:
        other = other & real
    if bool(other.any()):
        sequence, row = other.nonzero()[0].tolist()
        raise UnsupportedError(
            f"position_ids: got {positions.expand(shape)[sequence, row]} for row {row}, must be "
            f"{first + row}: the ring attends to one sequence for each row of the batch, and packed "
            "ones are not served"
        )


def _targets(
    given: dict[str, torch.Tensor],
    tokens: torch.Tensor,
    real: torch.Tensor | None,
    ignore_index: int,
) -> torch.Tensor | None:
    """What each row is to predict: the next row's label."""
    labels, targets = given.get("labels"), given.get("shift_labels")
    for name, value in (("labels", labels), ("shift_labels", targets)):
        if value is None:
            continue
        _require_shape(name, value, tokens)
        if value.is_floating_point():
            raise InvalidProblemError(f"{name}: got {value.dtype}, must be integers")
        if real is not None and bool((value[~real] != ignore_index).any()):
            raise UnsupportedError(
                f"{name}: has a target at a row that attention_mask hides; must be {ignore_index} "
                "there"
            )
    if targets is None and labels is not None:
        targets = _behind(labels[:, 1:], 1, ignore_index)
    return None if targets is None else targets.long()


def _length(model: Any, rows: int, world_size: int, pad: bool) -> int:
    """The rows of the batch once it can be cut."""
    beyond = -rows % world_size
    if not beyond:
        return rows
    if not pad:
        sharding.rows_per_rank(rows, world_size, "the batch")
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if isinstance(longest, int) and rows <= longest < rows + beyond and _learns_positions(model):
        raise InvalidProblemError(
            f"the batch has {rows} rows, which {world_size} ranks cannot share evenly, and filled "
            f"up to {rows + beyond} it would be longer than config.max_position_embeddings, "
            f"{longest}; must be {rows + beyond - world_size} or less"
        )
    return rows + beyond


def _learns_positions(model: Any) -> bool:
    tokens = model.get_input_embeddings()
    return any(isinstance(x, torch.nn.Embedding) and x is not tokens for x in model.modules())


def _behind(x: torch.Tensor, count: int, value: int) -> torch.Tensor:
    """`count` rows of `value` behind those of each sequence."""
    if not count:
        return x
    return torch.cat([x, x.new_full((x.shape[0], count, *x.shape[2:]), value)], 1)
