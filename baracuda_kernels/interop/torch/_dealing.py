"""``shard`` and ``unshard`` as operators of PyTorch. The gradient of each is the other.

A whole tensor is the same on every rank, and so is its gradient. So the gradient of a shard is this
rank's rows of the whole gradient, and the whole gradient is gathered from the gradients of all
shards.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels import SequenceLayout, sharding
from baracuda_kernels._arguments import layout_of
from baracuda_kernels.errors import CommunicatorError, InvalidProblemError
from baracuda_kernels.interop.torch import _compiled, _process_group, _tangents
from baracuda_kernels.interop.torch._works import end_connections

_library = _tangents.Library("baracuda", "FRAGMENT")
_library.define("shard(Tensor x, int dim, str group_name, str sequence_layout) -> Tensor")
# call: see _compiled.
_library.define(
    "unshard(Tensor x, int dim, str group_name, str sequence_layout, Tensor? call=None) -> Tensor"
)


def _shard(x: torch.Tensor, dim: int, group_name: str, sequence_layout: str) -> torch.Tensor:
    ranks = _process_group.resolve(group_name)
    rows = rows_of(x, dim, ranks)
    positions = sharding.positions(rows, ranks.rank(), ranks.size(), sequence_layout)
    return x.index_select(dim, torch.tensor(positions, device=x.device))


def _fake_shard(x: torch.Tensor, dim: int, group_name: str, sequence_layout: str) -> torch.Tensor:
    layout_of(sequence_layout)
    rows = x.shape[dim] // _process_group.resolve(group_name).size()
    return x.new_empty([rows if i == dim else n for i, n in enumerate(x.shape)])


def _unshard(
    x: torch.Tensor,
    dim: int,
    group_name: str,
    sequence_layout: str,
    call: torch.Tensor | None = None,
) -> torch.Tensor:
    layout = layout_of(sequence_layout)
    ranks = _process_group.resolve(group_name)
    pieces = [
        torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks.size())
    ]
    try:
        if ranks.size() > 1:
            _require_alike(x, dim, layout, ranks)
        dist.all_gather(pieces, x.contiguous(), group=ranks)
    except RuntimeError as error:
        if x.device.type == "cpu":
            end_connections(ranks)
        raise CommunicatorError(
            f"group: the all-gather failed on rank {ranks.rank()} of {ranks.size()}: {error}"
        ) from error
    return sharding.unshard(pieces, dim=dim, sequence_layout=layout)


def _fake_unshard(
    x: torch.Tensor,
    dim: int,
    group_name: str,
    sequence_layout: str,
    call: torch.Tensor | None = None,
) -> torch.Tensor:
    _compiled.chain()
    layout_of(sequence_layout)
    ranks = _process_group.resolve(group_name).size()
    return x.new_empty([n * ranks if i == dim else n for i, n in enumerate(x.shape)])


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.where = inputs[1:4]


def _backward_of_shard(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    return unshard_op(gradient, *ctx.where), None, None, None


def _backward_of_unshard(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    return shard_op(gradient, *ctx.where), None, None, None, None


def rows_of(x: torch.Tensor, dim: int, ranks: dist.ProcessGroup) -> int:
    """Number of rows of each rank's shard. Raises if the ranks cannot share the rows evenly."""
    return sharding.rows_per_rank(x.shape[dim], ranks.size(), f"dimension {dim}")


def _require_alike(
    x: torch.Tensor, dim: int, layout: SequenceLayout, ranks: dist.ProcessGroup
) -> None:
    """Raise on every rank if shapes, dtypes, dim or layouts differ: gloo would read the bytes of
    one dtype as another, or end the process."""
    dtype = zlib.crc32(str(x.dtype).encode())
    mine = torch.tensor([dim, dtype, layout.value, *x.shape], device=x.device)
    count = torch.tensor([mine.numel()], device=x.device)
    counts = [torch.empty_like(count) for _ in range(ranks.size())]
    dist.all_gather(counts, count, group=ranks)
    alike = all(c.item() == counts[0].item() for c in counts)
    if alike:
        everyone = [torch.empty_like(mine) for _ in counts]
        dist.all_gather(everyone, mine, group=ranks)
        alike = all(torch.equal(one, everyone[0]) for one in everyone)
    if not alike:
        raise InvalidProblemError(
            f"x: got shape {tuple(x.shape)}, dim {dim}, {x.dtype} and the {layout.name.lower()} "
            f"layout on rank {ranks.rank()}, must be the same on every rank"
        )


for _name, _implementation, _fake, _gradient in (
    ("shard", _shard, _fake_shard, _backward_of_shard),
    ("unshard", _unshard, _fake_unshard, _backward_of_unshard),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"baracuda::{_name}", _fake, lib=_library)
    torch.library.register_autograd(
        f"baracuda::{_name}", _gradient, setup_context=_save, lib=_library
    )
shard_op = torch.ops.baracuda.shard.default
unshard_op = torch.ops.baracuda.unshard.default
_compiled.keep(unshard_op)
