"""One batch on every rank of a ring: compared by digests, or sent by the ring's first rank."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels.errors import (
    BaracudaError,
    CommunicatorError,
    InvalidProblemError,
    UnsupportedError,
)
from baracuda_kernels.interop.torch import _refusal_message
from baracuda_kernels.interop.transformers import _whole_batch

_BYTES = 1024  # of a message

_streams: dict[torch.device, torch.cuda.Stream] = {}


def agree(
    ring: dist.ProcessGroup,
    data: dist.ProcessGroup | None,
    batch: Mapping[str, list[str]],
    error: Exception | None,
) -> None:
    """Raise on every rank if one rank fails or has another batch than its ring. Collective.

    Parameters
    ----------
    ring, data : ProcessGroup
        The ranks that must have one batch, and the ranks that train on other batches: they stop
        with this one.
    batch : mapping of str to list
        The `digests` of the batch. Read only if there is no error.
    error : Exception, optional
        The refusal of this rank, or an error that it met. This rank raises it.
    """
    told = None if error is None else _as_told(error)
    said = _refusal_message.encode(told, _BYTES) if told else json.dumps(batch).encode()
    messages = _gather(ring, said)
    told = told or _refused(messages) or _difference([json.loads(m) for m in messages])
    others: list[bytes] = []
    if data is not None:
        others = _gather(data, _refusal_message.encode(told, _BYTES) if told else b"{}")
    error = error or told or _refused(others)
    if error is not None:
        raise error


def from_first(ring: dist.ProcessGroup, batch: Any) -> tuple[Any, Exception | None]:
    """The batch of the ring's first rank, on the CPU, or the error that this rank met. Collective.

    An error is not raised here, so that the data group can be told too.
    """
    if ring.size() == 1:
        return batch, None
    error: Exception | None = None
    given: list[Any] = [None, b""]
    if ring.rank() == 0:
        try:
            tensors = _whole_batch.tensors_of(batch)
            given[0] = {name: _plain(name, value) for name, value in tensors.items()}
        except Exception as found:  # noqa: BLE001 - `agree` raises it
            error = found
            given[1] = _refusal_message.encode(_as_told(found), _BYTES)
    with failures(ring):
        dist.broadcast_object_list(given, src=dist.get_global_rank(ring, 0), group=ring)
    return given[0], error or _refusal_message.decode(0, given[1])


@contextlib.contextmanager
def failures(group: dist.ProcessGroup) -> Iterator[None]:
    """Turn a failure of a collective call into an error of the group."""
    try:
        yield
    except RuntimeError as error:
        raise CommunicatorError(
            f"group: a collective call failed on rank {group.rank()} of {group.size()}: {error}"
        ) from error


def _as_told(error: Exception) -> BaracudaError:
    """What the other ranks are told of an error."""
    if isinstance(error, BaracudaError):
        return error
    return CommunicatorError(f"batch: {type(error).__name__}: {error}")


def _plain(name: str, value: torch.Tensor) -> torch.Tensor:
    """A tensor that can be sent."""
    if value.requires_grad:
        raise UnsupportedError(
            f"{name}: got a tensor that requires grad, must be detached with broadcast=True: its "
            "gradient would be lost"
        )
    return value.cpu()


def digests(batch: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """The type, the shape and a digest of the values of every tensor."""
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
