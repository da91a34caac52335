"""One process per rank of a ring, kept for many tasks; rings over NCCL are on one GPU by default.

A distinct NCCL_HOSTID makes NCCL take each process for a machine of its own. So it connects them by
sockets, and does not refuse two ranks on one GPU. Such rings test correctness; their speed means
nothing. With BARACUDA_TEST_RANK_DEVICES=each, a ring that finds enough GPUs uses one for each rank,
and the links between them.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import forked

_WORKER = Path(__file__).parent.parent / "multi_rank" / "worker.py"
_START_SECONDS = 180.0
RANK_DEVICE = "BARACUDA_TEST_RANK_DEVICE"  # tells a worker its GPU
SHOW_STACKS = signal.SIGUSR1  # a worker then writes the stack of every thread to its stderr
_END_SECONDS = 60.0  # many processes that share a GPU end slowly


class RankPool:
    """Workers of a ring; `run` gives every one of them a task and waits for all answers.

    A worker that raises, dies or does not answer in time fails the calling test with every worker's
    stderr, and ends the pool: a broken ring cannot be trusted with the next task.

    Parameters
    ----------
    device_each : bool or "visible", optional
        Rank r on GPU r instead of all on GPU 0; by default if BARACUDA_TEST_RANK_DEVICES says so
        and there are enough GPUs. "visible": the rank also sees no other GPU.
    environment : dict, optional
        More environment variables for every worker.
    options
        Options of the worker's task `join`.
    """

    def __init__(
        self,
        world_size: int,
        worker: Path = _WORKER,
        *,
        device_each: bool | str | None = None,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.world_size = world_size
        self._environment = environment or {}
        self._device_each = _enough_gpus(world_size) if device_each is None else device_each
        self._script = worker
        self._options = options
        self.folder = tempfile.TemporaryDirectory(prefix="rank-pool-")
        self._started = 0
        self._workers = [self._start(rank) for rank in range(world_size)]
        self._successors: dict[int, list[_Worker]] = {}
        self._broken = False
        self.join()

    def join(self, **options: Any) -> list[dict[str, Any]]:
        """A new communicator of all ranks. The earlier one is closed. `options` hold for later ones
        too."""
        self._options |= options
        token = self.run({"do": "unique_id"}, ranks=[0], seconds=_START_SECONDS)[0]
        task = {"do": "join", "world_size": self.world_size, "unique_id": token["unique_id"]}
        return self.run({**self._options, **task}, seconds=_START_SECONDS)

    def run(
        self,
        task: dict[str, Any],
        *,
        ranks: list[int] | None = None,
        seconds: float = 60.0,
        meanwhile: Callable[[], None] | None = None,
        victim: int | None = None,
    ) -> list[dict[str, Any]]:
        """The answers of `ranks` (all by default), in their order.

        `meanwhile` is called once all have their task; no answer is expected of the `victim`.
        """
        assert not self._broken, "an earlier task broke this ring"
        chosen = [self._workers[r] for r in (range(self.world_size) if ranks is None else ranks)]
        for worker in chosen:
            worker.tell({**task, "folder": self.folder.name})
        if meanwhile is not None:
            meanwhile()
        answers = [w.answer(seconds) for w in chosen if victim is None or w.rank != victim]
        failures = [text for a in answers if (text := a.get("failure"))]
        if failures:
            self._broken = True
            report = "\n".join([*failures, *(w.stderr_report() for w in self._workers)])
            raise AssertionError(f"task {task} failed on a ring of {self.world_size}:\n{report}")
        return answers

    def kill(self, rank: int) -> None:
        """End one worker without a message to the others."""
        self._workers[rank].kill()

    def signal(self, rank: int, number: int) -> None:
        """Send a worker a signal."""
        self._workers[rank].signal(number)

    def leave(self, task: dict[str, Any], *, seconds: float = 60.0) -> list[int | None]:
        """The exit codes of the workers after a task that ends them; None if one has not ended in
        time. The ring is unusable then."""
        self._broken = True
        for worker in self._workers:
            worker.tell({**task, "folder": self.folder.name})
        deadline = time.monotonic() + seconds
        return [worker.ended(deadline - time.monotonic()) for worker in self._workers]

    def forget_answer(self, rank: int, seconds: float = 60.0) -> None:
        """Wait for the answer of a failed rank whose process still runs."""
        self._workers[rank].answer(seconds)

    def prepare(self, rank: int, count: int) -> None:
        """Start processes for the next restarts of a rank: starting one takes many seconds."""
        started = [self._start(rank) for _ in range(count)]
        self._successors.setdefault(rank, []).extend(started)

    def restart(self, rank: int) -> None:
        """A new process for a rank; `join` makes it part of the ring."""
        self._workers[rank].close(_END_SECONDS)
        prepared = self._successors.get(rank)
        self._workers[rank] = prepared.pop(0) if prepared else self._start(rank)

    def close(self, *, cleanly: bool = False) -> None:
        """Let all workers end, at the same time: one that ends a communicator may wait for others.

        With `cleanly`, one that fails on its way out or must be killed fails the caller, unless the
        ring was broken before.
        """
        workers = [*self._workers, *itertools.chain(*self._successors.values())]
        for worker in workers:
            worker.end_input()
        deadline = time.monotonic() + _END_SECONDS
        codes = [worker.close(deadline - time.monotonic()) for worker in workers]
        report = "\n".join(w.stderr_report() for w in workers)
        self.folder.cleanup()
        if cleanly and not self._broken and any(codes):
            raise AssertionError(f"the workers ended with {codes}:\n{report}")

    def _start(self, rank: int) -> _Worker:
        environment = {
            **os.environ,
            "NCCL_SOCKET_IFNAME": "lo",
            "PYTHONUNBUFFERED": "1",
            RANK_DEVICE: str(rank if self._device_each else 0),
            **self._environment,
        }
        if self._device_each == "visible":
            environment |= {RANK_DEVICE: "0", "CUDA_VISIBLE_DEVICES": _visible(rank)}
        if not self._device_each:
            environment["NCCL_HOSTID"] = f"rank-{rank}"
        self._started += 1
        stderr = Path(self.folder.name) / f"stderr-{self._started}.txt"
        fork = self._options.get("backend") == "gloo" and forked.possible()
        return _Worker(self._script, rank, environment, stderr, fork=fork)


def _enough_gpus(world_size: int) -> bool:
    if os.environ.get("BARACUDA_TEST_RANK_DEVICES") != "each":
        return False
    from baracuda_kernels._core import _info

    return len(_info.devices()) >= world_size


def _visible(rank: int) -> str:
    """The device of a rank, of the devices that this process sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return seen.split(",")[rank] if seen else str(rank)


class _Worker:
    def __init__(
        self, script: Path, rank: int, environment: dict[str, str], stderr: Path, *, fork: bool
    ) -> None:
        self.rank = rank
        self._stderr_path = stderr
        self._stderr = stderr.open("w")
        stdin, tasks = os.pipe()
        answers, stdout = os.pipe()
        streams = stdin, stdout, self._stderr.fileno()
        if fork:
            self._process = forked.Forked(script, [str(rank)], environment, *streams)
        else:
            command = [sys.executable, str(script), str(rank)]
            names = "stdin", "stdout", "stderr"
            self._process = subprocess.Popen(command, env=environment, **dict(zip(names, streams)))
        os.close(stdin)
        os.close(stdout)
        self._tasks, self._answers = open(tasks, "w"), open(answers)  # noqa: SIM115 - see close()
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._answers:
            self._lines.put(line)
        self._lines.put("")  # the end

    def tell(self, task: dict[str, Any]) -> None:
        try:
            self._tasks.write(json.dumps(task) + "\n")
            self._tasks.flush()
        except BrokenPipeError:
            pass  # the process has ended: its answer reports that

    def answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._show_stacks_and_kill()
            return {"failure": f"rank {self.rank} gave no answer in {seconds:.0f} s: killed"}
        if not line:
            return {"failure": f"rank {self.rank} ended with {self._process.wait(10)}"}
        return json.loads(line)

    def stderr_report(self) -> str:
        text = self._stderr_path.read_text(errors="replace")
        return f"--- stderr of rank {self.rank}\n{text[-4000:]}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def _show_stacks_and_kill(self) -> None:
        """Its stderr then tells where every thread was."""
        self._process.send_signal(SHOW_STACKS)
        time.sleep(1.0)
        self._process.kill()

    def ended(self, seconds: float) -> int | None:
        try:
            return self._process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            return None

    def end_input(self) -> None:
        try:
            self._tasks.close()  # the worker's loop ends with its input
        except BrokenPipeError:
            pass  # it is gone already

    def close(self, seconds: float) -> int:
        """The exit code; the process is killed if it does not end in time."""
        self.end_input()
        try:
            code = self._process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            self._show_stacks_and_kill()
            code = self._process.wait(10)
        self._reader.join(10)
        self._answers.close()
        self._stderr.close()
        return code
