"""The error of one rank as a message to the others."""

from __future__ import annotations

import json

from baracuda_kernels import errors
from baracuda_kernels.errors import BaracudaError, CommunicatorError

# These cannot be made again from their text.
_WITH_FIELDS = (
    errors.BufferTooSmallError,
    errors.CudaError,
    errors.NcclError,
    errors.NcclTimeoutError,
    errors.WorkspaceTooSmallError,
)
_TEXT = 600  # the most characters of an error
_TOLD = "_told_to_other_ranks"  # an attribute of errors


def as_told(error: Exception) -> BaracudaError:
    """The error that the other ranks get: the same, or for an error with fields or of another
    library a CommunicatorError with its name and text."""
    vars(error)[_TOLD] = True
    if isinstance(error, BaracudaError) and not isinstance(error, _WITH_FIELDS):
        return error
    return CommunicatorError(f"ring_attention: {type(error).__name__}: {error}")


def was_told(error: Exception) -> bool:
    """Whether the other ranks know of an error that comes out of other code, in which the ring may
    have been called: a call that raises tells them itself, and a second time would answer their
    next call."""
    return isinstance(error, BaracudaError) or _TOLD in vars(error)


def encode(error: BaracudaError, nbytes: int) -> bytes:
    """The message, of at most `nbytes`: the text is cut until it fits."""
    text = str(error)[:_TEXT]
    while True:
        message = json.dumps({"refused": type(error).__name__, "text": text}).encode()
        excess = len(message) - nbytes
        if excess <= 0:
            return message
        text = text[: -(excess // 12 or 1)]  # a character takes at most 12 bytes


def decode(rank: int, message: bytes) -> BaracudaError | None:
    """The error that a rank has told, or None if the message is another one."""
    if not message.startswith(b'{"refused"'):
        return None
    said = json.loads(message)
    name, text = said["refused"], said["text"]
    kind = getattr(errors, name, None)
    if kind is None or issubclass(kind, _WITH_FIELDS):
        return CommunicatorError(f"rank {rank}: {name}: {text}")
    found: BaracudaError = kind(f"rank {rank}: {text}")
    return found
