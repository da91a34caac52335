"""Waiting for a process group's messages, so that Ctrl-C ends the wait."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import queue
import threading
from typing import Any

import torch

# Pairs of a work and the tensor that it must not outlive.
Works = list[tuple[Any, Any]]
_Answer = queue.SimpleQueue[BaseException | None]

# A wait that ends so, by gloo's rules, ends the group's connections too.
_AT_ONCE = datetime.timedelta(milliseconds=1)
_TAG = 0x6263  # of a message that nobody sends

_tasks: queue.SimpleQueue[tuple[Works, _Answer] | None] = queue.SimpleQueue()
_process = -1  # whose thread serves them


def wait_all(pending: Works) -> BaseException | None:
    """The first failure of the works, all of which are over then; not raised.

    A wait blocks in C++, where no signal is heard: in the main thread of the process another thread
    waits in its place. After Ctrl-C the group has no connections, nobody writes into the tensors
    any more, and the other ranks' waits fail at once.
    """
    if threading.current_thread() is not threading.main_thread():
        return _wait(pending)
    _start()
    answer: _Answer = queue.SimpleQueue()
    _tasks.put((pending, answer))
    try:
        return answer.get()
    except BaseException:
        for work, _ in pending:
            with contextlib.suppress(RuntimeError):
                work.wait(_AT_ONCE)
        with contextlib.suppress(queue.Empty):
            answer.get(timeout=0.3)
        raise


def end_connections(group: Any) -> None:
    """Let the other ranks' waits for this one fail at once, after a message of its own has failed.

    A ring whose neighbour is gone sends no more. Without this its other neighbour would wait for it.
    """
    for peer in set(range(group.size())) - {group.rank()}:
        with contextlib.suppress(RuntimeError):
            box = torch.empty(1, dtype=torch.uint8)
            group.recv([box], peer, _TAG).wait(_AT_ONCE)


def _wait(pending: Works) -> BaseException | None:
    failure = None
    for work, _ in pending:
        # Whatever has failed: the others may still be writing into tensors that are freed next.
        try:
            work.wait()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            failure = failure or error
    return failure


def _serve(tasks: queue.SimpleQueue[tuple[Works, _Answer] | None]) -> None:
    while (task := tasks.get()) is not None:
        pending, answer = task
        failure = _wait(pending)
        # The one who waits has them, too: they must not end here, in C++, while the process ends.
        del task, pending
        answer.put(failure)


def _end(thread: threading.Thread, tasks: queue.SimpleQueue[Any]) -> None:
    if _process == os.getpid():
        tasks.put(None)
        thread.join(timeout=1.0)


def _start() -> None:
    global _process, _tasks
    if _process != os.getpid():  # threads do not survive a fork
        _process, _tasks = os.getpid(), queue.SimpleQueue()
        thread = threading.Thread(
            target=_serve, args=(_tasks,), name="baracuda-wait", daemon=True
        )
        thread.start()
        atexit.register(_end, thread, _tasks)
