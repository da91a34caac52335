"""One batch on every rank of a ring: compared by digests, or sent by the ring's first rank."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels.errors import BaracudaError, CommunicatorError, InvalidProblemError
from baracuda_kernels.interop.torch import _refusal_message

_BYTES = 1024  # of a message

_streams: dict[torch.device, torch.cuda.Stream] = {}


def agree(
    ring: dist.ProcessGroup,
    data: dist.ProcessGroup | None,
    batch: Mapping[str, torch.Tensor],
    error: BaracudaError | None,
) -> None:
    """Raise on every rank if one rank refuses its batch or has another batch than its ring.
    Collective.

    Parameters
    ----------
    ring, data : ProcessGroup
        The ranks that must have one batch, and the ranks that train on other batches: they stop
        with this one.
    batch : mapping of str to Tensor
        Read only if there is no error.
    error : BaracudaError, optional
        The refusal of this rank.
    """
    said = _refusal_message.encode(error, _BYTES) if error else json.dumps(_digests(batch)).encode()
    messages = _gather(ring, said)
    error = error or _refused(messages) or _difference([json.loads(m) for m in messages])
    others: list[bytes] = []
    if data is not None:
        others = _gather(data, _refusal_message.encode(error, _BYTES) if error else b"{}")
    error = error or _refused(others)
    if error is not None:
        raise error


def from_first(ring: dist.ProcessGroup, batch: Any) -> Any:
    """The batch of the ring's first rank, on the CPU. Collective."""
    if ring.size() == 1:
        return batch
    if isinstance(batch, Mapping) and ring.rank() == 0:
        batch = {name: _plain(value) for name, value in batch.items()}
    given = [batch if ring.rank() == 0 else None]
    with failures(ring):
        dist.broadcast_object_list(given, src=dist.get_global_rank(ring, 0), group=ring)
    return given[0]


@contextlib.contextmanager
def failures(group: dist.ProcessGroup) -> Iterator[None]:
    """Turn a failure of a collective call into an error of the group."""
    try:
        yield
    except RuntimeError as error:
        raise CommunicatorError(
            f"group: a collective call failed on rank {group.rank()} of {group.size()}: {error}"
        ) from error


def _plain(value: Any) -> Any:
    """A value that can be sent. A value that is not a tensor, which the sharder refuses, becomes
    the name of its type."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    return None if value is None else type(value).__name__


def _digests(batch: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    found = {}
    for name, tensor in sorted(batch.items()):
        data = tensor.detach().contiguous().cpu().view(torch.uint8).numpy()
        what = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        found[name] = [what, hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()]
    return found


def _refused(messages: list[bytes]) -> BaracudaError | None:
    for rank, message in enumerate(messages):
        found = _refusal_message.decode(rank, message)
        if found is not None:
            return found
    return None


def _difference(ranks: list[dict[str, list[str]]]) -> BaracudaError | None:
    for rank, other in enumerate(ranks):
        for name in sorted({*ranks[0], *other}):
            one, two = ranks[0].get(name), other.get(name)
            if one != two:
                a, b = (x[0] if x else "none" for x in (one, two))
                values = " of other values" if a == b else ""
                return InvalidProblemError(
                    f"batch: got {name} of {a} on rank 0 of the ring and of {b}{values} on rank "
                    f"{rank}, must be the same on all ranks of a ring: sample by the data-parallel "
                    "rank, or "
                    "give BatchSharder broadcast=True"
                )
    return None


def _gather(group: dist.ProcessGroup, message: bytes) -> list[bytes]:
    """The message of every rank of the group, without waiting for the kernels of earlier calls."""
    if group.size() == 1:
        return [message]
    mine = torch.frombuffer(bytearray(message.ljust(_BYTES)), dtype=torch.uint8)
    try:
        group._get_backend(torch.device("cpu"))
    except RuntimeError:
        device = torch.device("cuda", torch.cuda.current_device())
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)
        with torch.cuda.stream(_streams[device]):
            return _gathered(group, mine.to(device))
    return _gathered(group, mine)


def _gathered(group: dist.ProcessGroup, mine: torch.Tensor) -> list[bytes]:
    everyone = [torch.empty_like(mine) for _ in range(group.size())]
    with failures(group):
        dist.all_gather(everyone, mine, group=group)
    return [bytes(one.cpu().numpy()).rstrip(b" ") for one in everyone]
