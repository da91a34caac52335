"""transformers' Trainer over a ring: the batches that it gets, how they are cut, and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.transformers import _whole_batch

if TYPE_CHECKING:
    from baracuda_kernels.interop.transformers._sharder import BatchSharder


class _DataParallelView:
    """An Accelerator whose ranks are the data groups: its data loaders give each ring its own
    batches."""

    def __init__(self, accelerator: Any, index: int, count: int) -> None:
        self._accelerator = accelerator
        self.process_index, self.num_processes = index, count
        self.dispatch_batches = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def attach(sharder: BatchSharder, trainer: Any) -> None:
    _require(sharder, trainer)
    accelerator, args = trainer.accelerator, trainer.args
    view = _DataParallelView(accelerator, *sharder._data_rank())
    prepare = type(accelerator).prepare_data_loader
    gather = accelerator.gather_for_metrics
    samples = trainer.get_batch_samples

    def prepare_data_loader(*given: Any, **options: Any) -> Any:
        return prepare(view, *given, **options)

    def get_batch_samples(*given: Any, **options: Any) -> tuple[list[Any], torch.Tensor | None]:
        whole, _ = samples(*given, **options)
        parts = [sharder.shard(batch) for batch in whole]
        count = sharder.count(parts) if parts else None
        return [_for_compute_loss(part) for part in parts], count

    def compute_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        share = sharder._share(outputs, labels, num_items_in_batch)
        # With this argument Trainer multiplies the loss itself, since it averages the gradients.
        return share if args.average_tokens_across_devices else share * sharder.ranks

    def prediction_step(
        model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        if not prediction_loss_only:
            raise UnsupportedError(
                "predict: got a ring, must be one rank: the logits of a sequence are on several "
                "ranks. Call the model, and unshard(logits, 1)"
            )
        part = sharder.shard(_without_repeated(sharder, inputs, accelerator.gradient_state))
        count = sharder.count([part])
        targets = part.pop("shift_labels")
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss = sharder.loss(model(**part), targets, count)
        return sharder.total(loss), None, None

    def gather_for_metrics(values: Any, *given: Any, **options: Any) -> Any:
        # Those of one rank of each ring: Accelerator cuts what it gathers for the last batch to the
        # number of its sequences, but not what it gathers for the others.
        if not isinstance(values, torch.Tensor):
            return gather(values, *given, **options)
        values, state = sharder._over_data(values), accelerator.gradient_state
        last = state.end_of_dataloader and state.remainder > 0
        return values[: state.remainder] if last else values

    accelerator.prepare_data_loader = prepare_data_loader
    trainer.get_batch_samples = get_batch_samples
    trainer.compute_loss_func = compute_loss
    trainer.prediction_step = prediction_step
    trainer.gather_function = accelerator.gather_for_metrics = gather_for_metrics


def _for_compute_loss(part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trainer gives the entry named labels to the loss, and not to the model."""
    return {"labels" if name == "shift_labels" else name: part[name] for name in part}


def _without_repeated(sharder: BatchSharder, batch: Any, state: Any) -> Any:
    """The batch without the targets of the sequences by which the last batch of an evaluation was
    filled up, so that every data-parallel rank has one."""
    if not (isinstance(batch, Mapping) and state.end_of_dataloader and state.remainder > 0):
        return batch
    whole = dict(batch)
    for name in ("labels", "shift_labels"):
        value = whole.get(name)
        if isinstance(value, torch.Tensor) and value.dim() and _whole_batch.are_integers(value):
            first = max(state.remainder - sharder._data_rank()[0] * value.shape[0], 0)
            whole[name] = value.to(torch.int64, copy=True)
            whole[name][first:] = sharder._ignore_index
    return whole


def _require(sharder: BatchSharder, trainer: Any) -> None:
    from transformers import Trainer

    if not isinstance(trainer, Trainer):
        raise InvalidProblemError(f"trainer: got {type(trainer).__name__}, must be a Trainer")
    accelerator, args = trainer.accelerator, trainer.args
    if accelerator.unwrap_model(trainer.model) is not sharder.model:
        raise InvalidProblemError(
            "trainer: got one of another model, must have the sharder's model"
        )
    if accelerator.num_processes != sharder.ranks:
        raise InvalidProblemError(
            f"trainer: got {accelerator.num_processes} ranks, must be the {sharder.ranks} of the "
            "sharder's ring and data group"
        )
    parallelism = getattr(accelerator, "parallelism_config", None)
    cuts = parallelism is not None and any(
        getattr(parallelism, f"{name}_size", 1) > 1 for name in ("cp", "sp", "tp")
    )
    for name in ("compute_loss", "prediction_step", "get_batch_samples"):
        if getattr(getattr(trainer, name), "__func__", None) is not getattr(Trainer, name):
            raise UnsupportedError(
                f"trainer.{name}: got another method than Trainer's, must be that one: a ring gives "
                "it the rows and shifted targets of one rank"
            )
    for name, given in (
        ("compute_metrics", trainer.compute_metrics is not None),
        ("label_smoothing_factor", args.label_smoothing_factor != 0),
        # Its noise is scaled by the rows of the call, which are those of a rank.
        ("neftune_noise_alpha", args.neftune_noise_alpha is not None),
        ("compute_loss_func", trainer.compute_loss_func is not None),
        ("parallelism_config", cuts),
        ("dispatch_batches", bool(accelerator.dispatch_batches)),
        ("even_batches", sharder._data_rank()[1] > 1 and not accelerator.even_batches),
        ("n_gpu", args.n_gpu > 1),
        ("deepspeed", accelerator.distributed_type == "DEEPSPEED"),
    ):
        if given:
            raise UnsupportedError(
                f"trainer.{name}: got a value, must be left out: it is not served over a ring"
            )
