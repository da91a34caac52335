"""``shard`` and ``unshard`` as operators of PyTorch. The gradient of each is the other.

A whole tensor is the same on every rank, and so is its gradient. So the gradient of a shard is this
rank's rows of the whole gradient, and the whole gradient is gathered from the gradients of all
shards.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels import SequenceLayout, sharding
from baracuda_kernels._arguments import integer, layout_of
from baracuda_kernels._core._info import build_info
from baracuda_kernels.errors import BaracudaError, CommunicatorError, InvalidProblemError
from baracuda_kernels.interop.torch import _compiled, _process_group, _refusal, _tangents
from baracuda_kernels.interop.torch._ring import ring_of
from baracuda_kernels.interop.torch._works import end_connections

_library = _tangents.library()
_library.define("shard(Tensor x, int dim, str group_name, str sequence_layout) -> Tensor")
# like: gives the device.
_library.define(
    "positions(Tensor like, SymInt rows, str group_name, str sequence_layout) -> Tensor"
)
# call: see _compiled.
_library.define(
    "unshard(Tensor x, int dim, str group_name, str sequence_layout, Tensor? call=None) -> Tensor"
)


_SIGNED = {getattr(torch, f"u{name}"): getattr(torch, name) for name in ("int16", "int32", "int64")}


def _shard(x: torch.Tensor, dim: int, group_name: str, sequence_layout: str) -> torch.Tensor:
    ranks = _process_group.resolve(group_name)
    rows = rows_of(x, dim, ranks)
    positions = sharding.positions(rows, ranks.rank(), ranks.size(), sequence_layout)
    rows_here = torch.tensor(positions, device=x.device)
    kind = _SIGNED.get(x.dtype)
    if kind is not None:  # PyTorch selects no rows of these
        return x.view(kind).index_select(dim, rows_here).view(x.dtype)
    return x.index_select(dim, rows_here)


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
            _require_alike(x, dim, layout, group_name)
        if x.numel():
            # As bytes: no backend gathers every dtype, and gloo fails its group for one it lacks.
            dist.all_gather(_bytes_of(*pieces), _bytes_of(x.contiguous())[0], group=ranks)
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


def tell(group_name: str, error: BaracudaError, x: Any) -> None:
    """Send an error to the ranks that wait for this rank, if they compare their rows on the CPU."""
    of_cpu = x.device.type == "cpu" if isinstance(x, torch.Tensor) else True
    if dist.is_initialized() and of_cpu and _process_group.sends_cpu_tensors(group_name):
        _refusal.tell(group_name, error, torch.device("cpu"))


def _bytes_of(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.view(-1).view(torch.uint8) for x in tensors]


def positions(
    rows: int, group_name: str, sequence_layout: SequenceLayout | str, device: Any
) -> torch.Tensor:
    """Global positions of this rank's rows, int64."""
    ranks = _process_group.resolve(group_name)
    rows = integer("rows", rows, least=0, most=2**62 // ranks.size())
    found = sharding.positions(rows, ranks.rank(), ranks.size(), sequence_layout)
    return torch.tensor(found, device=device)


def _positions(
    like: torch.Tensor, rows: int, group_name: str, sequence_layout: str
) -> torch.Tensor:
    return positions(rows, group_name, sequence_layout, like.device)


def _fake_positions(
    like: torch.Tensor, rows: int, group_name: str, sequence_layout: str
) -> torch.Tensor:
    return like.new_empty((rows,), dtype=torch.int64)


def _require_alike(x: torch.Tensor, dim: int, layout: SequenceLayout, group_name: str) -> None:
    """Raise on every rank if shapes, dtypes, dim or layouts differ: gloo would read the bytes of
    one dtype as another, or end the process."""
    compare = _alike_on_cpu if x.device.type == "cpu" else _alike
    if not compare(x, dim, layout, group_name):
        ranks = _process_group.resolve(group_name)
        raise InvalidProblemError(
            f"x: got shape {tuple(x.shape)}, dim {dim}, {x.dtype} and the {layout.name.lower()} "
            f"layout on rank {ranks.rank()}, must be the same on every rank"
        )


def _alike_on_cpu(x: torch.Tensor, dim: int, layout: SequenceLayout, group_name: str) -> bool:
    """By the round of messages that begins every call of a ring: it carries refusals, and a rank
    that calls the ring meanwhile differs."""
    fields = {
        "library version": build_info()["version"],
        "direction": "UNSHARD",
        "x": f"{dim} {x.dtype} {layout.name} {tuple(x.shape)}"[:600],
    }
    messages = ring_of(group_name, x.device).exchange(json.dumps(fields).encode())
    return all(message == messages[0] for message in messages)


def _alike(x: torch.Tensor, dim: int, layout: SequenceLayout, group_name: str) -> bool:
    ranks = _process_group.resolve(group_name)
    dtype = zlib.crc32(str(x.dtype).encode())
    mine = torch.tensor([dim, dtype, layout.value, *x.shape], device=x.device)
    count = torch.tensor([mine.numel()], device=x.device)
    counts = [torch.empty_like(count) for _ in range(ranks.size())]
    dist.all_gather(counts, count, group=ranks)
    if any(c.item() != counts[0].item() for c in counts):
        return False
    everyone = [torch.empty_like(mine) for _ in counts]
    dist.all_gather(everyone, mine, group=ranks)
    return all(torch.equal(one, everyone[0]) for one in everyone)


for _name, _implementation, _fake, _gradient in (
    ("shard", _shard, _fake_shard, _backward_of_shard),
    ("unshard", _unshard, _fake_unshard, _backward_of_unshard),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"baracuda::{_name}", _fake, lib=_library)
    torch.library.register_autograd(
        f"baracuda::{_name}", _gradient, setup_context=_save, lib=_library
    )
_library.impl("positions", _positions, "CompositeExplicitAutograd")
torch.library.register_fake("baracuda::positions", _fake_positions, lib=_library)
positions_op = torch.ops.baracuda.positions.default
shard_op = torch.ops.baracuda.shard.default
unshard_op = torch.ops.baracuda.unshard.default
_compiled.keep(unshard_op)
