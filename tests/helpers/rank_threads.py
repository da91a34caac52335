"""A thread for each rank of a ring."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def on_ranks(ranks: int, work: Callable[[int], Any]) -> list[Any]:
    """The result of work(rank) for each rank, or the exception that it raised."""
    results: list[Any] = [None] * ranks

    def drive(rank: int) -> None:
        try:
            results[rank] = work(rank)
        except Exception as error:  # noqa: BLE001 - handed to the test
            results[rank] = error

    threads = [threading.Thread(target=drive, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank hangs"
    return results
