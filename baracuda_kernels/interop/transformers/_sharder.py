"""Training batches cut for a ring, and the loss of their parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

from baracuda_kernels import sharding
from baracuda_kernels._arguments import flag, integer
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.torch import _process_group
from baracuda_kernels.interop.torch._refusal import tell
from baracuda_kernels.interop.torch._ring import find_ring
from baracuda_kernels.interop.transformers import _models, _rounds, _same_batch, _whole_batch
from baracuda_kernels.interop.transformers._attention import Ring


class BatchSharder:
    """Cuts training batches for the ranks of a model's ring, and sums up their loss.

    All ranks of a ring train on one batch, each on its rows. Data-parallel ranks train on other
    batches. The result equals the training of one rank up to rounding: the labels are shifted
    before the cut, and the loss is divided by the number of targets of all ranks and accumulated
    batches.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model, not wrapped. Its ring and layout are those of its
        ``attn_implementation`` (`register`) or of the `context_parallel` around this call.
    data_group : ProcessGroup or DeviceMesh of one dimension, optional
        The ranks that train on other batches, such as ``mesh["dp"]`` beside the ring
        ``mesh["cp"]``: one rank of each ring. None if the ring has all ranks. Beside other
        parallelism it is smaller than the number of rings. If it leaves out some of the ranks that
        train on other batches, and on every rank alike, nothing shows it, and the loss is that of
        the ranks it has.
    gradients : str, default "mean"
        "mean" if the gradients of the ranks are averaged, as DistributedDataParallel and FSDP do
        it; "sum" if they are added.
    broadcast : bool, default False
        Take the batch of the ring's first rank, instead of comparing the batches of all its ranks.
    pad : bool, default True
        If the ring cannot cut a length evenly, add rows without targets at the end. Under a causal
        mask no other row sees them.
    ignore_index : int, default -100
        The label of a row without a target.

    Raises
    ------
    InvalidProblemError
        `model` is not a model of transformers, or runs on no ring; `data_group` is no group or
        missing; `gradients` is unknown; another option is of another type. `shard` refuses groups
        that do not fit together.
    UnsupportedError
        The model is not causal, or returns a loss of its routers (``output_router_logits``).
    """

    def __init__(
        self,
        model: Any,
        data_group: Any = None,
        *,
        gradients: Literal["mean", "sum"] = "mean",
        broadcast: bool = False,
        pad: bool = True,
        ignore_index: int = -100,
    ) -> None:
        if gradients not in ("mean", "sum"):
            raise InvalidProblemError(f'gradients: got {gradients!r}, must be "mean" or "sum"')
        _whole_batch.require_model(model)
        self.model = model
        self._pad, self._ignore_index = flag("pad", pad), integer("ignore_index", ignore_index)
        self._broadcast, self._averaged = flag("broadcast", broadcast), gradients == "mean"
        self._data = _data_group(data_group, self._ring())
        self._positions: dict[tuple[Any, ...], torch.Tensor] = {}

    @property
    def ranks(self) -> int:
        """Number of ranks that train on one step, the ring's ranks times the data group's."""
        data = 1 if self._data is None else self._data.size()
        return self._ring_and_name()[0].ranks() * data

    def shard(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """This rank's part of a batch. Collective.

        Parameters
        ----------
        batch : mapping
            As a collator makes it: integer ``input_ids`` ``[B, N]`` (or ``inputs_embeds``
            ``[B, N, E]``); for a loss also ``labels`` ``[B, N]``, not shifted, or ``shift_labels``,
            shifted. An ``attention_mask`` may have zeros after each sequence, in rows without
            labels. ``position_ids`` may be those of the whole sequence: ``0 .. N - 1``, or from the
            model's first position on. Tensors are best on the CPU: the ranks compare the batch, and
            for tensors on a GPU the host would wait.

        Returns
        -------
        dict
            On the model's device: ``input_ids`` (or ``inputs_embeds``), int64 ``position_ids``
            ``[1, L]`` and, if the batch has labels, ``shift_labels`` ``[B, L]``, the targets of
            this rank's `L` rows. Take out ``shift_labels`` before the model is called with the
            rest.

        Raises
        ------
        InvalidProblemError
            On every rank: a tensor has another shape or type, a token or target is not in the
            model's vocabulary, the ranks of a ring have different batches, the length cannot be
            cut, or the data groups are wrong: one has two ranks of a ring, those of a ring's ranks
            differ in size, or those of two rings do not have the same ranks.
        UnsupportedError
            On every rank: `check` refuses the model at this length, or the batch has packed
            sequences, other positions, other zeros in ``attention_mask``, an entry that is not
            named above or, with `broadcast`, a tensor that requires grad. At once: the call is in a
            worker of a DataLoader.
        CommunicatorError
            Another rank has ended, or has met an error that is not of this library.
        """
        if get_worker_info() is not None:
            raise UnsupportedError(
                "shard: got a call in a worker of a DataLoader, must be in the training process: "
                "the ranks compare the batch, and a worker has no process group"
            )
        ring, own_name = self._ring_and_name()
        group = _process_group.resolve(ring.group_name)
        whole: dict[str, torch.Tensor] = {}
        digests: dict[str, list[str]] = {}
        refused: Exception | None = None
        if self._broadcast:
            batch, refused = _same_batch.from_first(group, batch)
        try:
            if refused is None:
                whole = _whole_batch.prepare(
                    self.model, batch, group.size(), own_name, self._pad, self._ignore_index
                )
                digests = _same_batch.digests(whole)
        except Exception as error:  # noqa: BLE001 - `agree` raises it
            refused = error
        _same_batch.agree(group, self._data, digests, refused)
        return self._cut(whole, ring, group)

    def count(self, shards: Iterable[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """Number of targets of all ranks in one optimizer step, an int64 scalar. Collective.

        Parameters
        ----------
        shards : iterable of dict
            The results of `shard`, one for each accumulated batch.

        Raises
        ------
        InvalidProblemError
            There are none, or one has no ``shift_labels``. On the CPU on every rank, also if it is
            so on one. On CUDA, where the host does not wait for the other ranks, the others of the
            ring on this machine raise it from their next call of the model.
        CommunicatorError
            Likewise: another rank has met an error that is not of this library, such as one of
            its iterable. That rank raises its own error.
        """
        found: torch.Tensor | None = None
        refused: Exception | None = None
        try:
            found = self._targets_in(shards)
        except Exception as error:
            if _rounds.is_known(error):  # of `shard`, if the iterable cuts the batches
                raise
            refused = error
        if self._host_waits():
            number = 0 if found is None else int(found)
            total = _same_batch.add(self._ring(), self._data, number, refused)
            return torch.tensor(total, device=self.model.device)
        if found is None:
            found = torch.zeros((), dtype=torch.int64, device=self.model.device)
        found = self._over_all_ranks(found)  # with an error too: the GPUs of the others would wait
        if refused is not None:
            self._tell(refused, "shards")
            raise refused
        return found

    def loss(
        self,
        outputs: Any,
        shift_labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int,
    ) -> torch.Tensor:
        """The loss to call ``backward()`` on: cross entropy of this rank's rows.

        Logits of 16 bits are converted to float32.

        Parameters
        ----------
        outputs : ModelOutput or Tensor
            The result of the model, or its logits ``[B, L, V]``.
        shift_labels : Tensor
            ``[B, L]``, from the same part of the batch.
        num_items_in_batch : Tensor or int
            The result of `count` for the optimizer step.

        Returns
        -------
        Tensor
            A scalar. Its mean over all ranks (with ``gradients="sum"`` its sum) is the loss of the
            batch, and the same holds for its gradient. 0 if no rank has a target.

        Raises
        ------
        InvalidProblemError
            Logits and targets have different rows. The others of the ring (on CUDA, of this
            machine) raise this and any other error of one rank from their next call of the model or
            ``backward()``.
        """
        share = self._share(outputs, shift_labels, num_items_in_batch)
        return share * self.ranks if self._averaged else share

    def total(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of the whole batch, on every rank, for logs: it has no gradient. Collective.

        Parameters
        ----------
        loss : Tensor
            The result of `loss`, or a sum of such results.

        Raises
        ------
        CommunicatorError
            A rank has ended.
        """
        total = self._over_all_ranks(loss.detach().clone())
        return total / self.ranks if self._averaged else total

    def attach(self, trainer: Any) -> None:
        """Make a Trainer train over the ring: call it once, before ``train()``.

        The ranks of a ring get the same batches, cut by `shard`. The loss is that of `loss`, over
        all ranks and accumulated batches. ``evaluate()`` returns its mean over the sequences, as on
        one rank with the batches of all data-parallel ranks.
        `gradients` has no effect: Trainer averages.

        Parameters
        ----------
        trainer : transformers.Trainer
            A trainer of this model, with any collator.

        Raises
        ------
        InvalidProblemError
            `trainer` is not a Trainer, has another model, or its ranks are not those of the ring
            and the data group.
        UnsupportedError
            The trainer has ``compute_metrics``, label smoothing, NEFTune, a loss of its own,
            another parallelism that cuts batches, ``dispatch_batches``, data-parallel ranks without
            ``even_batches``, DataParallel or DeepSpeed. Later, in a call of ``predict()``.
        """
        from baracuda_kernels.interop.transformers import _trainer

        _trainer.attach(self, trainer)

    def _data_rank(self) -> tuple[int, int]:
        """This rank's number in the data group, and the size of that group."""
        return (0, 1) if self._data is None else (self._data.rank(), self._data.size())

    def _targets_in(self, shards: Iterable[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """Number of targets of this rank."""
        found = [_targets(part).ne(self._ignore_index).sum() for part in shards]
        if not found:
            raise InvalidProblemError("shards: got none, must be one for each batch of a step")
        return torch.stack(found).sum()

    def _host_waits(self) -> bool:
        """Whether a call waits for the other ranks. On CUDA it would also wait for the GPU."""
        return str(self.model.device.type) != "cuda"

    def _tell(self, error: Exception, name: str) -> None:
        """Make the others of the ring raise this rank's error from their next call of the ring."""
        found, device = _models.ring_of(self.model), self.model.device
        # To make a communicator is collective. If there is none, no rank has called the model.
        if found is not None and find_ring(found[0].group_name, device) is not None:
            tell(found[0].group_name, _rounds.as_told(error, name), device)

    def _share(
        self, outputs: Any, shift_labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
    ) -> torch.Tensor:
        """This rank's part of the loss. The parts of all ranks add up to the loss of the batch."""
        try:
            return self._own_share(outputs, shift_labels, num_items_in_batch)
        except Exception as error:
            self._tell(error, "loss")
            raise

    def _own_share(
        self, outputs: Any, shift_labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
    ) -> torch.Tensor:
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
        if logits.shape[:-1] != shift_labels.shape:
            raise InvalidProblemError(
                f"outputs: got logits of shape {tuple(logits.shape)}, must be "
                f"{(*shift_labels.shape, logits.shape[-1])}, the rows of shift_labels"
            )
        if logits.itemsize < 4:
            logits = logits.float()
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2),
            shift_labels.to(logits.device).flatten(),
            ignore_index=self._ignore_index,
            reduction="sum",
        )
        if isinstance(num_items_in_batch, torch.Tensor):
            return total / num_items_in_batch.to(total.device).clamp(min=1)
        return total / max(num_items_in_batch, 1)

    def _over_all_ranks(self, value: torch.Tensor) -> torch.Tensor:
        for group in (self._ring(), self._data):
            if group is not None and group.size() > 1:
                with _rounds.failures(group):
                    dist.all_reduce(value, group=group)
        return value

    def _over_data(self, values: torch.Tensor) -> torch.Tensor:
        """The values of every rank of the data group, one after another."""
        if self._data is None:
            return values
        every = [torch.empty_like(values) for _ in range(self._data.size())]
        with _rounds.failures(self._data):
            dist.all_gather(every, values.contiguous(), group=self._data)
        return torch.cat(every)

    def _ring(self) -> dist.ProcessGroup:
        return _process_group.resolve(self._ring_and_name()[0].group_name)

    def _ring_and_name(self) -> tuple[Ring, str | None]:
        found = _models.ring_of(self.model)
        if found is None:
            chosen = getattr(self.model.config, "_attn_implementation", None)
            raise InvalidProblemError(
                f"model: got attn_implementation {chosen!r}, must be the name of a registered "
                "ring, or be used within context_parallel"
            )
        return found

    def _cut(
        self, whole: dict[str, torch.Tensor], ring: Ring, group: dist.ProcessGroup
    ) -> dict[str, torch.Tensor]:
        device = self.model.device
        tokens = next(whole[name] for name in _whole_batch.TOKENS if name in whole)
        rows = tokens.shape[1] // group.size()
        what = (rows, ring.layout, group.rank(), group.size(), device)
        mine = sharding.positions(rows, group.rank(), group.size(), ring.layout)
        if what not in self._positions:  # one tensor for all steps: calls compare it once
            positions = torch.from_numpy(mine + _models.first_position(self.model))
            self._positions = {what: positions.unsqueeze(0).to(device)}
        part = {}
        for name, tensor in whole.items():
            cut = tensor.index_select(1, torch.from_numpy(mine).to(tensor.device))
            part[name] = cut.to(device, non_blocking=True)
        part["position_ids"] = self._positions[what]
        return part


def _targets(part: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found = part.get("shift_labels")
    if found is None:
        raise InvalidProblemError(
            f"shards: got a part with {sorted(part)}, must have shift_labels: the batch needs "
            "labels"
        )
    return found


def _data_group(given: Any, ring: dist.ProcessGroup) -> dist.ProcessGroup | None:
    if given is None:
        if ring.size() != dist.get_world_size():
            raise InvalidProblemError(
                f"data_group: got None for a ring of {ring.size()} of {dist.get_world_size()} "
                "ranks, "
                'must be the group of the ranks that train on other batches, such as mesh["dp"]'
            )
        return None
    data = _process_group.resolve(_process_group.name_of(given))
    return data if data.size() > 1 else None
