"""Runs every part of the evidence on this machine's GPUs, and merges what they wrote.

    python -m benchmarks.all_parts --out out -o benchmarks/results

It takes about an hour on one GPU. On several GPUs it first measures and tests what takes all of
them, which writes files of its own (`across`). What a part prints goes to OUT/<part>.txt.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click

from baracuda_kernels._core import _info
from benchmarks import ROOT
from benchmarks.evidence import PARTS, merge

# The host's microseconds: they come first, and nothing runs beside them.
_HOST = "host"
_ROWS_OF_A_GPU = ("8192", "4096", "2048", "1024", "32768")
_MOST_GPUS = 4  # more parts side by side would want more of the host than it has


@click.command()
@click.option("--out", type=Path, required=True, metavar="DIR")
@click.option("--part", "parts", multiple=True, metavar="NAME", help="Only this one.")
@click.option("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
def main(out: Path, parts: Collection[str], output: Path) -> None:
    """Run the parts and merge them; exit code 0 if every part ran and nothing in it failed."""
    known = [*across(2, output), *PARTS]
    if unknown := [name for name in parts if name not in known]:
        raise click.BadParameter(f"got {', '.join(unknown)}, must be of {', '.join(known)}")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    gpus, names = len(_info.devices()), parts or known
    codes = {
        name: _run(out / f"{name}.txt", command)
        for name, command in (across(gpus, output) if gpus > 1 else {}).items()
        if name in names
    }
    if of_one_gpu := [name for name in names if name in PARTS]:
        codes |= run_all(gpus, partial(_start, out), of_one_gpu)
        print(merge(out, output))
    sys.exit(max(codes.values(), default=1))  # 1: nothing of it can run here


def across(gpus: int, output: Path) -> dict[str, list[str]]:
    """By name, the commands that take all GPUs of the machine; what they measure goes to `output`."""
    python = [sys.executable, "-m"]
    ranks = [*python, "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m"]
    required = ["--require-gpu"] if gpus >= _MOST_GPUS else []  # some tests take so many
    results = ["--out", str(output.resolve())]
    return {
        "several": [*python, "pytest", "-q", *required, "-m", "multi_gpu", "tests"],
        "scaling": [*ranks, "benchmarks.scaling", "--layout", "zigzag", "--chunk", *_ROWS_OF_A_GPU,
                    *results],
        "training": [*ranks, "benchmarks.training", *results],
        "training_jax": [*python, "benchmarks.training_jax", *results],
    }  # fmt: skip


def run_all(
    gpus: int, start: Callable[[str, int], int], parts: Collection[str] = tuple(PARTS)
) -> dict[str, int]:
    """Exit codes by part; `start(part, gpu)` gives one once the part has ended."""
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for gpu in range(max(1, min(gpus, _MOST_GPUS))):
        free.put(gpu)

    def run(part: str) -> int:
        gpu = free.get()
        try:
            return start(part, gpu)
        finally:
            free.put(gpu)

    codes = {_HOST: run(_HOST)} if _HOST in parts else {}
    # The last ones take longest, and begin first.
    others = [part for part in reversed(PARTS) if part in parts and part != _HOST]
    with ThreadPoolExecutor(free.qsize()) as pool:
        return codes | dict(zip(others, pool.map(run, others), strict=True))


def _start(out: Path, part: str, gpu: int) -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    device = visible.split(",")[gpu] if visible else str(gpu)
    command = [sys.executable, "-m", "benchmarks.evidence", "--part", part, "--out", str(out)]
    return _run(out / f"{part}.txt", command, CUDA_VISIBLE_DEVICES=device)


def _run(log: Path, command: list[str], **environment: str) -> int:
    begin = time.monotonic()
    with log.open("w") as into:
        code = subprocess.run(
            command, check=False, cwd=ROOT, env={**os.environ, **environment}, stdout=into,
            stderr=subprocess.STDOUT,
        ).returncode  # fmt: skip
    print(f"{log.stem}: exit code {code} after {time.monotonic() - begin:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    main()
