"""Waits for a process group's messages in a way that Ctrl-C can end."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import queue
import threading
from typing import Any

import torch

# Pairs of a work and its tensor, which must stay alive as long as the work.
Works = list[tuple[Any, Any]]
_Answer = queue.SimpleQueue[BaseException | None]

# In gloo, a wait that times out ends the group's connections.
_AT_ONCE = datetime.timedelta(milliseconds=1)
_TAG = 0x6263  # the tag of a message that no rank sends

_tasks: queue.SimpleQueue[tuple[Works, _Answer] | None] = queue.SimpleQueue()
_process = -1  # the id of the process whose thread serves the tasks


def wait_all(pending: Works) -> BaseException | None:
    """Wait for all works, and return the first failure, which is not raised.

    A wait blocks in C++, where Python handles no signal. So the main thread lets another thread
    wait. Ctrl-C ends the group's connections: no peer writes into the tensors any more, and the
    waits of the other ranks fail at once.
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
    """Make the other ranks' waits for this rank fail at once, after one of its messages has failed.

    This rank sends nothing more. Without this call, its other neighbour would wait for it.
    """
    for peer in set(range(group.size())) - {group.rank()}:
        with contextlib.suppress(RuntimeError):
            box = torch.empty(1, dtype=torch.uint8)
            group.recv([box], peer, _TAG).wait(_AT_ONCE)


def _wait(pending: Works) -> BaseException | None:
    failure = None
    for work, _ in pending:
        # After a failure the other works may still write into their tensors, which are freed next.
        try:
            work.wait()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            failure = failure or error
    return failure


def _serve(tasks: queue.SimpleQueue[tuple[Works, _Answer] | None]) -> None:
    while (task := tasks.get()) is not None:
        pending, answer = task
        failure = _wait(pending)
        # The thread that waits for the answer holds the works too. The last reference to them must
        # not be dropped here, which could happen while the process ends.
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
