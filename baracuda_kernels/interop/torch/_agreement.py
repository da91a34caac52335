"""What the ranks of a group on the CPU tell each other before each call."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch._C._autograd import _enable_record_function

from baracuda_kernels.errors import BaracudaError, CommunicatorError, InvalidProblemError
from baracuda_kernels.interop.torch import _refusal_message
from baracuda_kernels.interop.torch._works import Works, end_connections, wait_all
from baracuda_kernels.ops.ring_attention import _agreement

# A tag that differs from those of users' messages and of K and V.
_TAG = 0x6262
_NUMBER_BYTES = 20


class Agreement:
    """One message from every rank to every other rank, in one round for each call.

    A rank that refuses its call sends the refusal in place of its message and does not wait.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._rank, self._size = group.rank(), group.size()
        self._round: Works = []  # the messages of a round that this rank did not wait for

    def require(self, mine: bytes, number: int | None = None) -> None:
        """Raise the refusal of another rank, or an error for the first rank that differs.

        `number` is that of the forward call whose gradients a backward gives. Ranks whose backwards
        come in different orders would pair calls of equal problems wrongly. A rank that runs
        compiled code does not know it.
        """
        if number is not None and mine[-_NUMBER_BYTES:].isspace():
            mine = mine[:-_NUMBER_BYTES] + b"%*d" % (_NUMBER_BYTES, number)
        messages = self.exchange(mine)
        numbers = [_number_of(x) for x in messages]
        _agreement.require(self._size, [
            message if of_it is None else message[:-_NUMBER_BYTES]
            for message, of_it in zip(messages, numbers, strict=True)
        ])  # fmt: skip
        for rank, of_rank in enumerate(numbers):
            if None not in numbers and of_rank != numbers[0]:
                raise InvalidProblemError(
                    f"rank {rank}: backward: got the gradients of forward call {of_rank} of the "
                    f"ring, must be those of call {numbers[0]} as on rank 0: every rank must ask "
                    "for the gradients of the same calls, in the same order"
                )

    def exchange(self, mine: bytes) -> list[bytes]:
        """The messages of all ranks, in their order. The refusal of another rank is raised."""
        self._finish()
        received = self._post(mine)
        self._finish()
        messages = [mine if x is None else bytes(x.numpy()) for x in received]
        for rank, message in enumerate(messages):
            refusal = _refusal_message.decode(rank, message)
            if refusal is not None:
                raise refusal
        return messages

    def refuse(self, error: BaracudaError) -> None:
        """Send the refusal in the round of this call, without waiting for the other ranks."""
        message = _refusal_message.encode(error, _agreement.MESSAGE_BYTES)
        self._finish()
        # A profiler that ends before a recorded message does would end the process.
        _enable_record_function(False)
        try:
            self._post(message.ljust(_agreement.MESSAGE_BYTES))
        finally:
            _enable_record_function(True)

    def _post(self, mine: bytes) -> list[torch.Tensor | None]:
        sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        received: list[torch.Tensor | None] = [None] * self._size
        try:
            for step in range(1, self._size):
                peer = (self._rank + step) % self._size
                self._round.append((self._group.send([sent], peer, _TAG), sent))
            for step in range(1, self._size):
                peer = (self._rank - step) % self._size
                box = received[peer] = torch.empty(_agreement.MESSAGE_BYTES, dtype=torch.uint8)
                self._round.append((self._group.recv([box], peer, _TAG), box))
        except RuntimeError as error:
            raise self._failure(error) from error
        return received

    def _finish(self) -> None:
        pending, self._round = self._round, []
        failure = wait_all(pending)
        if isinstance(failure, RuntimeError):
            raise self._failure(failure) from failure
        if failure is not None:
            raise failure

    def _failure(self, error: RuntimeError) -> CommunicatorError:
        end_connections(self._group)
        return CommunicatorError(
            f"group: the comparison of problems failed on rank {self._rank} of {self._size}: "
            f"{error}"
        )


def _number_of(message: bytes) -> int | None:
    """The number in the padding of a message; None if there is none."""
    text = message[-_NUMBER_BYTES:].strip()
    return int(text) if text.isdigit() else None
