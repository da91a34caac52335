"""The ring under ``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from baracuda_kernels import SequenceLayout
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.torch import _process_group
from baracuda_kernels.interop.torch._op import ring_attention


def context_parallel(
    group: dist.ProcessGroup | None = None,
    *,
    sequence_layout: SequenceLayout | str = "contiguous",
) -> TorchFunctionMode:
    """Context in which ``F.scaled_dot_product_attention`` attends over the whole ring.

    Give the model this rank's rows (`shard`) and their global positions (`position_ids`); all that
    works row by row needs no change. The context holds for this thread. Under autocast, q, k and v
    are cast as PyTorch's own function casts them.

    Parameters
    ----------
    group : ProcessGroup, optional
        The default group by default.
    sequence_layout : SequenceLayout or str, default "contiguous"

    Raises
    ------
    InvalidProblemError
        The group or layout is wrong; inside, also what `ring_attention` raises.
    UnsupportedError
        Inside: a mask tensor, dropout, or one query row against a longer cache. Nothing falls back
        to attention of the local rows.
    """
    _process_group.name_of(group)
    if not torch.compiler.is_compiling():  # else the operator's fake implementation does it
        SequenceLayout.parse(sequence_layout)
    return _RingMode(group, sequence_layout)


class _RingMode(TorchFunctionMode):
    def __init__(self, group: dist.ProcessGroup | None, layout: SequenceLayout | str) -> None:
        super().__init__()
        self._group = group
        self._layout = layout

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if attn_mask is not None:
            raise UnsupportedError(
                f"attn_mask: got a tensor of shape {tuple(attn_mask.shape)}, must be None: the "
                "ring masks by is_causal alone. transformers makes a mask of padding, and of the "
                "positions of zigzag and striped shards when use_cache=False; give no padding, "
                'and use_cache=True or attn_implementation="baracuda_ring"'
            )
        if dropout_p > 0.0:
            raise UnsupportedError(f"dropout_p: got {dropout_p}, must be 0")
        refuse_decode(query, key, is_causal)
        if not enable_gqa and query.shape[-3] != key.shape[-3]:
            raise InvalidProblemError(
                f"key: got {key.shape[-3]} heads, must have the {query.shape[-3]} of query unless "
                "enable_gqa=True"
            )
        device = query.device.type
        if torch.is_autocast_enabled(device) and query.dtype is not torch.float64:
            dtype = torch.get_autocast_dtype(device)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        return ring_attention(
            query,
            key,
            value,
            self._group,
            is_causal=is_causal,
            scale=scale,
            sequence_layout=self._layout,
        )


def refuse_decode(query: torch.Tensor, key: torch.Tensor, is_causal: bool) -> None:
    """Raise for queries that continue a cache: their rows have no place in the layout."""
    rows, keys = query.shape[-2], key.shape[-2]
    if rows != keys and (is_causal or rows == 1):
        raise UnsupportedError(
            f"query: got {rows} rows and {keys} keys on this rank: decoding against a sharded "
            "cache is not built; prefill alone is, with as many queries as keys"
        )
