"""The messages by which the sharder's ranks tell each other of a call, and of an error of one rank."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels.errors import BaracudaError, CommunicatorError, InvalidProblemError
from baracuda_kernels.interop.torch import _refusal_message

BYTES = 1024  # of a message
_GIVEN = {"shard": "batch", "count": "shards"}  # the argument of a call

_streams: dict[torch.device, torch.cuda.Stream] = {}


def exchange(
    ring: dist.ProcessGroup,
    data: dist.ProcessGroup | None,
    call: str,
    mine: Mapping[str, Any],
    of_ring: Callable[[list[dict[str, Any]]], dict[str, Any]],
    of_data: Callable[[list[dict[str, Any]]], Any],
    error: Exception | None,
) -> Any:
    """`of_data` of what the rings of the data group say, each by `of_ring` of its ranks' messages.

    Collective: one round within the ring, and one within the data group. A rank with an error sends
    it in place of its message and raises it. All others of both rounds raise what they are told.
    """
    told = None if error is None else as_told(error, _GIVEN[call])
    messages = _gather(ring, _message(call, mine, told))
    told = told or _refused(messages)
    ours: dict[str, Any] = {}
    if told is None:
        try:
            ours = of_ring(_of_call(call, messages))
        except BaracudaError as found:
            told = found
    rings = [_message(call, ours, told)]
    if data is not None:
        rings = _gather(data, rings[0])
        told = told or _refused(rings)
    answer = None
    if told is None:
        try:
            answer = of_data(_of_call(call, rings))
        except BaracudaError as found:
            told = found
    error = error or told
    if error is not None:
        raise _known(error)
    return answer


def _known(error: Exception) -> Exception:
    error._baracuda_known = True  # type: ignore[attr-defined]
    return error


def is_known(error: BaseException | None) -> bool:
    """Whether the error, or one that led to it, is that of a collective call, which raises on the
    other ranks too."""
    while error is not None:
        if hasattr(error, "_baracuda_known"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _message(call: str, content: Mapping[str, Any], told: BaracudaError | None) -> bytes:
    if told is not None:
        return _refusal_message.encode(told, BYTES)
    return json.dumps({"call": call, **content}).encode()


def _of_call(call: str, messages: list[bytes]) -> list[dict[str, Any]]:
    """The contents of the messages, of which all must be of the same call."""
    found = [json.loads(message) for message in messages]
    for rank, other in enumerate(found):
        if other["call"] != call:
            calls = sorted((call, other["call"]))
            raise InvalidProblemError(
                f"{_GIVEN[call]}: got calls of {calls[0]} and {calls[1]} at one time (rank {rank}), "
                "must be as many batches in each step on all ranks"
            )
    return found


@contextlib.contextmanager
def failures(group: dist.ProcessGroup) -> Iterator[None]:
    """Turn a failure of a collective call into an error of the group."""
    try:
        yield
    except RuntimeError as error:
        raise _known(
            CommunicatorError(
                f"group: a collective call failed on rank {group.rank()} of {group.size()}: {error}"
            )
        ) from error


def as_told(error: Exception, name: str = "batch") -> BaracudaError:
    """What the other ranks are told of an error."""
    if isinstance(error, BaracudaError):
        return error
    return CommunicatorError(f"{name}: {type(error).__name__}: {error}")


def _refused(messages: list[bytes]) -> BaracudaError | None:
    for rank, message in enumerate(messages):
        found = _refusal_message.decode(rank, message)
        if found is not None:
            return found
    return None


def _gather(group: dist.ProcessGroup, message: bytes) -> list[bytes]:
    """The message of every rank of the group, without waiting for the kernels of earlier calls."""
    if group.size() == 1:
        return [message]
    mine = torch.frombuffer(bytearray(message.ljust(BYTES)), dtype=torch.uint8)
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
