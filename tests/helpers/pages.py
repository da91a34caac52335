"""Runs the code of the documents: Python blocks as one program, and commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import forked

ROOT = Path(__file__).parent.parent.parent


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block of a file, by its path in the repository."""
    fence = r"^( *)```([^\n]*)\n(.*?)^\1```$"
    found = re.findall(fence, (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def code_blocks(page: str, language: str) -> list[str]:
    """Text of the blocks of one language."""
    return [text for name, text in blocks(page) if name == language]


def commands(block: str) -> list[list[str]]:
    """The words of each command of a shell block, its lines and `&&` apart, comments left out."""
    lines = (part for line in block.splitlines() for part in line.split("&&"))
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def torchrun(ranks: int, *, one_gpu: bool = False) -> list[str]:
    """What starts a program as `ranks` processes.

    With `one_gpu` all are on the first device, and NCCL takes each for a machine of its own, or it
    would refuse.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    command += [f"--nproc-per-node={ranks}"]
    if one_gpu:
        command += ["sh", "-c", 'NCCL_HOSTID=rank-$RANK LOCAL_RANK=0 exec "$@"', "sh"]
    return command


def run_page(
    page: str,
    folder: Path,
    *,
    append: str = "",
    launcher: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> str:
    """Output of docs/`page`'s Python blocks and `append`; a failure has the program's stderr."""
    found = code_blocks(f"docs/{page}", "python")
    assert found, f"{page} shows no Python"
    program = folder / f"{Path(page).stem.replace('-', '_')}_page.py"
    program.write_text("\n".join([*found, append]))
    return run_program(program, folder, launcher=launcher, environment=environment, timeout=timeout)


def run_program(
    program: Path,
    folder: Path,
    *arguments: str,
    launcher: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> str:
    """Output of a program that must succeed, started in `folder` by this Python.

    Where PyTorch's gloo ended it, it is started again: see `_ENDED_BY_GLOO`.
    """
    for again in (True, True, False):
        done = run_to_its_end(
            [
                *launcher,
                sys.executable,
                "-W",
                "error::DeprecationWarning:__main__",
                str(program),
                *arguments,
            ],
            cwd=folder,
            environment={**os.environ, **(environment or {})},
            timeout=timeout,
        )
        if not (again and launcher and done.returncode and _ENDED_BY_GLOO in done.stderr):
            break
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def run_on_ranks(
    program: Path,
    folder: Path,
    *arguments: str,
    ranks: int,
    environment: Mapping[str, str],
    timeout: float = 120,
) -> str:
    """`run_program` under torchrun; without a GPU in processes that start sooner (forked.py)."""
    if not forked.possible():
        launcher = torchrun(ranks)
        return run_program(
            program, folder, *arguments, launcher=launcher, environment=environment, timeout=timeout
        )
    for again in (True, True, False):
        codes, output, errors = forked.run_ranks(
            program, arguments, ranks, cwd=folder, environment=environment, timeout=timeout
        )
        if not (again and any(codes) and _ENDED_BY_GLOO in errors):
            break
    assert codes == [0] * ranks, f"exit codes {codes}:\n{output[-2000:]}{errors[-4000:]}"
    return output


def run_to_its_end(
    command: Sequence[Any], *, cwd: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """The output of a command and of the processes that it has started. None of them is left.

    `subprocess.run` would kill a launcher that is not done in time, and its ranks would stay on the
    GPU. A launcher that is asked to end, by SIGTERM, ends its ranks.

    The input is empty: mpiexec ends if rank 0 does not read what there is.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    late = False
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        late = True
        process.terminate()
        try:
            output, errors = process.communicate(timeout=_LAUNCHER_ENDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            output = errors = ""  # a rank that is left would keep the pipes open
    except BaseException:
        process.terminate()
        process.wait(_LAUNCHER_ENDS)
        raise
    if late:
        raise AssertionError(f"not done in {timeout} s:\n{output[-2000:]}{errors[-4000:]}")
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


_LAUNCHER_ENDS = 45.0  # seconds; torchrun waits 30 for its ranks and kills them then

# A program of two ranks that only gathers a tensor by PyTorch 2.13 over gloo, without this package,
# says so in one of some 20 starts, after its last line, while the process ends.
_ENDED_BY_GLOO = "terminate called without an active exception"
