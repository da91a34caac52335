"""The errors of all ranks of a ring, each of which meets the same cause by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence


def cannot_be_by_peer(why: str, asked: int) -> str:
    """The error if the first hop cannot be by peer, for which rank `asked` asked."""
    return (
        f'baracuda_peer_connect: exchange: got "peer" on rank {asked}, must be "auto" or "nccl" there: '
        f"the hop from rank 0 to rank 1 cannot be by peer: {why}"
    )


def assert_one_cause(messages: Sequence[str], cause: str) -> None:
    """Rank r's message is `cause`, or that another rank has ended the ring for that cause.

    The first rank to find the cause ends the ring. A rank that is still at an earlier message then
    is told, and does not come to find it. At least one rank has found it, and a ring is ended once:
    all that are told are told of the same rank, which is one of those.
    """
    found, told_of = set(), set()
    for rank, message in enumerate(messages):
        if message.partition(f" (rank {rank}, ")[0] == cause:
            found.add(rank)
            continue
        told = re.fullmatch(r"ring: rank (\d+) ended the ring: (.*)", message)
        assert told is not None and told[2] == cause, f"rank {rank}: {message}"
        told_of.add(int(told[1]))
    assert found and len(told_of) <= 1 and told_of <= found, messages
