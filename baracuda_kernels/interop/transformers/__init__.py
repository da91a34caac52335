"""Ring Attention as an attention implementation of Hugging Face transformers.

After ``register()``, a model made with ``attn_implementation="baracuda_ring"`` attends over a
sequence whose shards lie on the ranks of a torch process group. Give it this rank's ``input_ids``
(`baracuda_kernels.interop.torch.shard`) and their ``position_ids``. ``check(model)`` tells whether
a ring can serve a model at all. To train, cut the batches by a `BatchSharder`.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from baracuda_kernels import SequenceLayout
from baracuda_kernels._arguments import integer, layout_of
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.interop.torch import _process_group
from baracuda_kernels.interop.transformers import _attention, _check, _models
from baracuda_kernels.interop.transformers._attention import Ring
from baracuda_kernels.interop.transformers._sharder import BatchSharder

__all__ = ["BatchSharder", "check", "register"]


def register(
    group: Any = None,
    *,
    sequence_layout: SequenceLayout | str = "contiguous",
    name: str = "baracuda_ring",
) -> None:
    """Register the ring as an attention implementation.

    A second call with the same name replaces the group and the layout.
    Models look up the registration in every forward. Prefill works with and without a cache, in
    every layout. Decoding against the sharded cache is not built. The first call of a model runs
    `check`.

    Parameters
    ----------
    group : ProcessGroup or DeviceMesh of one dimension, optional
        By default the default group at the time of each forward.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.
    name : str, default "baracuda_ring"
        The value of ``attn_implementation``. Two groups or layouts at the same time need two names.

    Raises
    ------
    InvalidProblemError
        The group, the layout or the name is wrong. In a forward: as `ring_attention`, or the
        position ids are not those of this rank's rows.
    UnsupportedError
        In a forward: `check` refuses the model; there are no position ids; or the call has labels,
        padding or another mask, a sliding window, soft-capped scores, sinks, dropout, packed
        sequences, or queries that continue a cache.
    """
    if not isinstance(name, str):
        raise InvalidProblemError(f"name: got {name!r}, must be a str")
    ring = Ring(_process_group.name_of(group), layout_of(sequence_layout).name)
    _models.install()
    _models.registered[name] = lambda: ring
    AttentionInterface.register(name, functools.partial(_models.attend, ring))
    AttentionMaskInterface.register(name, functools.partial(_attention.mask, ring))


def check(model: Any, sequence_length: int | None = None) -> None:
    """Raise for a model whose answer from a ring would differ from that of one process.

    Not collective, and needs no process group. Masks, positions and labels are checked in the call.

    Parameters
    ----------
    model : PreTrainedModel
        With the ``attn_implementation`` that it will run with.
    sequence_length : int, optional
        Rows of the whole sequence, with which windows are compared; by default the model's
        ``max_position_embeddings``.

    Raises
    ------
    InvalidProblemError
        `model` is not a model of transformers, or `sequence_length` no integer from 0 on.
    UnsupportedError
        The model has recurrent, convolutional or windowed layers, an encoder and a decoder,
        position biases, no ``position_ids``, a pooler or sequence classifier, layers that place
        rows by themselves at that length, or code that ignores ``attn_implementation``. The message
        names it.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise InvalidProblemError(f"model: got {type(model).__name__}, must be a PreTrainedModel")
    if sequence_length is not None:
        sequence_length = integer("sequence_length", sequence_length, least=0)
    chosen = getattr(model.config, "_attn_implementation", None)
    _check.require(model, sequence_length, chosen if chosen in _models.registered else None)
