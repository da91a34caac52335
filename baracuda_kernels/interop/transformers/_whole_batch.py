"""The checks of a whole batch before it is cut, its targets and its length."""

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
    """Raise for a model that is not a causal language model, or that returns a loss of its routers."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise InvalidProblemError(
            f"model: got {type(model).__name__}, must be a PreTrainedModel, not a wrapper around it"
        )
    kind = type(model).__name__
    loss = getattr(model, "loss_type", None)  # of the model's class, as transformers derives it
    if loss not in (None, "ForCausalLM", "ForConditionalGeneration"):  # the last two have one loss
        raise UnsupportedError(
            f"{kind}.loss_type: got {loss!r}, must be 'ForCausalLM': the targets are those of a "
            "causal language model"
        )
    for config in (model.config, model.config.get_text_config(decoder=True)):
        if getattr(config, "is_causal", True) is False:
            raise UnsupportedError(
                f"{kind}.config.is_causal: got False, must be True: the targets are those of a "
                "causal language model"
            )
    for name, module in model.named_modules():
        if getattr(module, "is_causal", True) is False:
            raise UnsupportedError(
                f"{kind}.{name}: got attention that is not causal, must be causal: the targets are "
                "those of a causal model"
            )
    if getattr(model.config.get_text_config(decoder=True), "output_router_logits", False):
        raise UnsupportedError(
            f"{kind}.config.output_router_logits: got True, must be False: the loss of the routers "
            "needs the whole sequence"
        )


def prepare(
    model: Any,
    batch: Any,
    world_size: int,
    own_name: str | None,
    pad: bool,
    ignore_index: int,
) -> dict[str, torch.Tensor]:
    """The tokens, and with labels also ``shift_labels``, of a length that the ring can cut.

    Nothing is sent. The tensors are on the devices of the batch.
    """
    given = tensors_of(batch)
    name, tokens = _tokens(given)
    if name == "input_ids":
        _require_vocabulary(name, tokens, model.get_input_embeddings(), model)
    rows = tokens.shape[1]
    mask = _right_padding(given.get("attention_mask"), tokens)
    _require_positions(given.get("position_ids"), _models.first_position(model), tokens, mask)
    targets = _targets(model, given, tokens, mask, ignore_index)
    length = _length(model, rows, world_size, pad)
    _models.require(model, length, own_name)
    whole = {name: _behind(tokens, length - rows, 0)}
    if targets is not None:
        whole["shift_labels"] = _behind(targets, length - rows, ignore_index)
    return whole


def tensors_of(batch: Any) -> dict[str, torch.Tensor]:
    """The tensors of a batch; raises for entries that the sharder cannot cut or compare."""
    if not isinstance(batch, Mapping):
        raise InvalidProblemError(f"batch: got {type(batch).__name__}, must be a mapping")
    given = {name: value for name, value in batch.items() if value is not None}
    _attention.refuse_packed(given)
    for name, value in given.items():
        if name not in _KNOWN:
            raise UnsupportedError(
                f"batch: got the entry {name}, must have no others than {', '.join(_KNOWN)}"
            )
        if not isinstance(value, torch.Tensor):
            raise InvalidProblemError(
                f"{name}: got {type(value).__name__}, must be a torch.Tensor; collators make one "
                "with return_tensors='pt'"
            )
        if value.is_nested or value.layout is not torch.strided:
            kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
            raise UnsupportedError(f"{name}: got {kind}, must be a dense tensor")
        if value.is_meta:
            raise InvalidProblemError(f"{name}: got a tensor on meta, must have values")
    return given


def _tokens(given: dict[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    found = [name for name in TOKENS if name in given]
    if len(found) != 1:
        raise InvalidProblemError(
            f"batch: got {sorted(given)}, must have either input_ids or inputs_embeds"
        )
    (name,) = found
    tokens = given[name]
    if name == "input_ids" and (tokens.dim() != 2 or not are_integers(tokens)):
        raise InvalidProblemError(
            f"input_ids: got {tokens.dtype} {tuple(tokens.shape)}, must be integers [B, N]"
        )
    if name == "inputs_embeds" and tokens.dim() != 3:
        raise InvalidProblemError(
            f"inputs_embeds: got shape {tuple(tokens.shape)}, must be [B, N, E]"
        )
    if 0 in tokens.shape[:2]:
        raise InvalidProblemError(
            f"{name}: got shape {tuple(tokens.shape)}, must have at least one sequence and one row"
        )
    if name == "input_ids" and tokens.dtype is not torch.int32:
        tokens = tokens.long()  # embeddings take int32 and int64 alone
    return name, tokens


def are_integers(x: torch.Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype is torch.bool)


def _require_vocabulary(
    name: str, numbers: torch.Tensor, layer: Any, model: Any, ignore_index: int | None = None
) -> None:
    """Raise on every rank for a number beyond the model's vocabulary. PyTorch would raise on the
    rank of its row alone, and the other ranks would wait for that rank."""
    found = (
        getattr(model.config.get_text_config(decoder=True), "vocab_size", None),
        getattr(layer, "num_embeddings", None),
        getattr(layer, "out_features", None),
    )
    size = max((x for x in found if isinstance(x, int)), default=None)
    if size is None:
        return
    beyond = (numbers < 0) | (numbers >= size)
    if ignore_index is not None:
        beyond &= numbers != ignore_index
    if bool(beyond.any()):
        other = "" if ignore_index is None else f" or {ignore_index}"
        raise InvalidProblemError(
            f"{name}: got {int(numbers[beyond][0])}, must be in [0, {size}), the model's "
            f"vocabulary{other}"
        )


def _require_shape(name: str, value: torch.Tensor, tokens: torch.Tensor) -> None:
    if value.shape != tokens.shape[:2]:
        raise InvalidProblemError(
            f"{name}: got shape {tuple(value.shape)}, must be {tuple(tokens.shape[:2])}, as the "
            "tokens"
        )


def _right_padding(mask: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor | None:
    """Which rows are not padding, or None if all are. No row sees padding after its sequence."""
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
            "attention_mask: got numbers besides 0 and 1 (as for packed sequences), must be 0 and "
            "1: the ring attends to one sequence in each row of the batch"
        )
    if bool(real.all()):
        return None
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise UnsupportedError(
            "attention_mask: got zeros before rows of a sequence, must have them after it "
            "(tokenizer.padding_side = 'right'): the ring masks by causality alone"
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
            f"position_ids: got shape {tuple(positions.shape)}, must be {tuple(shape)}, that of "
            "the whole sequence"
        )
    expected = torch.arange(first, first + shape[1], device=positions.device)
    other = (positions != expected).expand(shape)
    if real is not None:
        other = other & real
    if bool(other.any()):
        sequence, row = other.nonzero()[0].tolist()
        raise UnsupportedError(
            f"position_ids: got {positions.expand(shape)[sequence, row]} for row {row}, must be "
            f"{first + row}: the ring attends to one sequence in each row of the batch, and packed "
            "sequences are not served"
        )


def _targets(
    model: Any,
    given: dict[str, torch.Tensor],
    tokens: torch.Tensor,
    real: torch.Tensor | None,
    ignore_index: int,
) -> torch.Tensor | None:
    """The target of each row: the label of the next row."""
    targets = None
    for name in ("labels", "shift_labels"):
        value = given.get(name)
        if value is None:
            continue
        _require_shape(name, value, tokens)
        if not are_integers(value):
            raise InvalidProblemError(f"{name}: got {value.dtype}, must be integers")
        value = value.long()  # a narrow type may not have ignore_index
        if real is not None and bool((value[~real] != ignore_index).any()):
            raise UnsupportedError(
                f"{name}: got a target in a row that attention_mask hides, must be {ignore_index} "
                "there"
            )
        targets = value if name == "shift_labels" else _behind(value[:, 1:], 1, ignore_index)
        _require_vocabulary(name, targets, model.get_output_embeddings(), model, ignore_index)
    return targets


def _length(model: Any, rows: int, world_size: int, pad: bool) -> int:
    """The rows of the batch once it can be cut."""
    beyond = -rows % world_size
    if not beyond:
        return rows
    if not pad:
        sharding.rows_per_rank(rows, world_size, "batch")
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if isinstance(longest, int) and rows <= longest < rows + beyond and _learns_positions(model):
        raise InvalidProblemError(
            f"batch: got {rows} rows, must be at most {rows + beyond - world_size}: padded to "
            f"{rows + beyond}, a multiple of the {world_size} ranks, it would be longer than "
            f"config.max_position_embeddings, {longest}"
        )
    return rows + beyond


def _learns_positions(model: Any) -> bool:
    tokens = model.get_input_embeddings()
    return any(isinstance(x, torch.nn.Embedding) and x is not tokens for x in model.modules())


def _behind(x: torch.Tensor, count: int, value: int) -> torch.Tensor:
    """`x` with `count` rows of `value` after those of each sequence."""
    if not count:
        return x
    return torch.cat([x, x.new_full((x.shape[0], count, *x.shape[2:]), value)], 1)
