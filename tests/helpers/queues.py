"""A transport between threads, such as an engine may have, and rings over it."""

from __future__ import annotations

import queue
import threading
from typing import Any

import baracuda_kernels as bk


class Queues:
    """A transport that records its calls. A receive waits at most `timeout` seconds."""

    timeout = 10.0

    def __init__(self, rank: int, world_size: int, wires: dict[tuple[int, int], Any]) -> None:
        self.rank, self.world_size, self.wires = rank, world_size, wires
        self.calls: list[Any] = []
        self.pending: list[tuple[Any, int]] = []

    def group_start(self) -> None:
        self.calls.append("start")

    def send(self, buffer: Any, peer: int, stream: Any) -> None:
        assert stream is None and buffer.device == -1
        self.calls.append(("send", peer, buffer.nbytes))
        self.wires[self.rank, peer].put(bytes(memoryview(buffer)))

    def recv(self, buffer: Any, peer: int, stream: Any) -> None:
        self.calls.append(("recv", peer, buffer.nbytes))
        self.pending.append((buffer, peer))

    def group_end(self) -> None:
        self.calls.append("end")
        pending, self.pending = self.pending, []
        for buffer, peer in pending:
            memoryview(buffer)[:] = self.wires[peer, self.rank].get(timeout=self.timeout)


def transports(world_size: int, kind: type[Queues] = Queues) -> list[Queues]:
    """One transport for each rank."""
    ranks = range(world_size)
    wires: dict[tuple[int, int], Any] = {(a, b): queue.Queue() for a in ranks for b in ranks}
    return [kind(rank, world_size, wires) for rank in ranks]


def run_over_queues(
    plan: Any, args: list[Any], kind: type[Queues] = Queues
) -> tuple[list[Queues], list[Exception]]:
    """Run every rank on its own thread; returns the transports and the errors of the runs."""
    ends = transports(len(args), kind)
    raised: list[Exception] = []

    def work(rank: int) -> None:
        try:
            plan.run(bk.Stream.host(), ends[rank], args[rank])
        except Exception as error:  # noqa: BLE001 - handed to the test
            raised.append(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(args))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return ends, raised
