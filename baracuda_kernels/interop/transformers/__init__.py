"""Ring Attention as an attention implementation of Hugging Face transformers. Forward only.

After ``register()``, a model made with ``attn_implementation="baracuda_ring"`` attends over a
sequence whose shards lie on the ranks of a torch process group. Give it this rank's ``input_ids``
(`baracuda_kernels.interop.torch.shard`) and their ``position_ids``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from baracuda_kernels import SequenceLayout
from baracuda_kernels.errors import UnsupportedError
from baracuda_kernels.interop.torch import _process_group, ring_attention
from baracuda_kernels.interop.torch._context import refuse_decode

__all__ = ["register"]

# Keyword arguments by which models ask for another attention than softmax(q·k) over all rows.
_VARIANTS = ("softcap", "s_aux", "sliding_window", "position_bias")


def register(
    group: dist.ProcessGroup | None = None,
    *,
    sequence_layout: SequenceLayout | str = "contiguous",
    name: str = "baracuda_ring",
) -> None:
    """Register the ring as an attention implementation; again, to change its group or layout.

    Models find the registration at every forward. Prefill works with and without a cache, in every
    layout; decoding against the sharded cache is not built.

    Parameters
    ----------
    group : ProcessGroup, optional
        The default group at the time of each forward by default.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.
    name : str, default "baracuda_ring"
        What ``attn_implementation`` is to be; another name for a second group or layout.

    Raises
    ------
    InvalidProblemError
        The group or layout is wrong. In a forward also what `ring_attention` raises.
    UnsupportedError
        In a forward: padding or another mask, a sliding window, soft-capped scores, sinks,
        dropout, packed sequences given by a mask, or queries that continue a cache.
    """
    _process_group.name_of(group)
    layout = SequenceLayout.parse(sequence_layout).name

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        _refuse(attention_mask, dropout, options)
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        refuse_decode(query, key, is_causal)
        y = ring_attention(
            query,
            key,
            value,
            group,
            is_causal=is_causal,
            scale=scaling,
            sequence_layout=layout,
        )
        return y.transpose(1, 2), None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _mask)


def _refuse(attention_mask: torch.Tensor | None, dropout: float, options: dict[str, Any]) -> None:
    if attention_mask is not None:
        raise UnsupportedError(
            f"attention_mask: got a tensor of shape {tuple(attention_mask.shape)}, must be None: "
            "the ring masks by causality alone"
        )
    if dropout:
        raise UnsupportedError(f"dropout: got {dropout}, must be 0; call model.eval()")
    for name in _VARIANTS:
        if options.get(name) is not None:
            raise UnsupportedError(f"{name}: is given by the model, and no kernel serves it")


def _mask(
    *args: Any,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **options: Any,
) -> None:
    """In place of a mask tensor: nothing, or an error where only a mask tensor would do.

    Without it, transformers would leave a padding mask out in silence.
    """
    if local_size is not None:
        raise UnsupportedError(
            f"sliding_window: got {local_size}, and no kernel serves it; the model's layers must "
            "attend to all rows"
        )
    if use_vmap:
        raise UnsupportedError("mask_function: got one, and the ring masks by causality alone")
    if attention_mask is not None and not bool(attention_mask.all()):
        raise UnsupportedError(
            "attention_mask: hides rows, and the ring masks by causality alone; give sequences of "
            "one length without padding"
        )
