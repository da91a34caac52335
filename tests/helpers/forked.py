"""Processes that start with PyTorch and transformers imported: forks of one process that did so.

To import both takes a process some ten seconds, and the tests start dozens. Python's forkserver
(multiprocessing) imports them once. CUDA does not survive a fork, so this is for machines without a
GPU.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

_TESTS = Path(__file__).parents[1]
_IMPORTED = (
    "torch",
    "torch._inductor.compile_fx",
    "torch.distributed.tensor",
    "torch.nn.attention.bias",
    "accelerate",
    "transformers.models.llama",
    "transformers.trainer",
)


@cache
def possible() -> bool:
    """Whether this machine has no GPU."""
    from baracuda_kernels._core import _info

    return not _info.devices()


class Forked:
    """A process that runs a program. It has of `subprocess.Popen` what the tests use.

    `stdin`, `stdout` and `stderr` are file descriptors, which stay the caller's. PyTorch has one
    thread, as under torchrun.
    """

    def __init__(
        self,
        program: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        *,
        cwd: Path | None = None,
    ) -> None:
        streams = [Connection(os.dup(stream)) for stream in (stdin, stdout, stderr)]
        self._process = _server().Process(
            target=_run,
            args=(str(program), list(arguments), dict(environment), cwd or os.getcwd(), streams),
        )
        # Or the process would import what pytest was started as.
        with mock.patch.dict(sys.modules, {"__main__": types.ModuleType("__main__")}):
            self._process.start()
        for stream in streams:
            stream.close()

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode


def run_ranks(
    program: Path,
    arguments: Sequence[str],
    ranks: int,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    timeout: float,
) -> tuple[list[int | None], str, str]:
    """A program's ranks, as torchrun starts them: exit codes, and what all ranks have printed.

    When one fails, or the time is up, the others are killed; the code of one that ran is None.
    """
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    ring = {
        **os.environ, **environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with (
        tempfile.TemporaryFile() as nothing,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        streams = [file.fileno() for file in (nothing, output, errors)]
        started = []
        try:
            for rank in range(ranks):
                own = {**ring, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.append(Forked(program, arguments, own, *streams, cwd=cwd))
            end = time.monotonic() + timeout
            codes = [None]
            while None in codes and not any(codes) and time.monotonic() < end:
                time.sleep(0.02)
                codes = [process.poll() for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        output.seek(0)
        errors.seek(0)
        return codes, output.read(), errors.read()


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # it is read at the import
        multiprocessing.forkserver.ensure_running()
    return context


def _run(
    program: str,
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    streams: list[Connection],
) -> None:
    """The program as `python -W error::DeprecationWarning:__main__` would run it."""
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering=1, closefd=False)  # noqa: SIM115 - open until the process ends
        for number, mode in enumerate("rww")
    )
    multiprocessing.set_start_method(None, force=True)  # the default again
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [program, *arguments]
    ours = {"", str(_TESTS), str(_TESTS.parent)}
    sys.path[:] = [str(Path(program).parent), *(path for path in sys.path if path not in ours)]
    warnings.filterwarnings("error", category=DeprecationWarning, module="__main__")
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forkserver's process leaves them out
