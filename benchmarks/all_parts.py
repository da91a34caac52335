"""Runs every part of the evidence on this machine's GPUs, and merges what they wrote.

    python -m benchmarks.all_parts --out out -o benchmarks/results

It takes some half an hour on one GPU. What a part prints goes to OUT/<part>.txt.
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
_MOST_GPUS = 4  # more parts side by side would want more of the host than it has


@click.command()
@click.option("--out", type=Path, required=True, metavar="DIR")
@click.option("--part", "parts", type=click.Choice([*PARTS]), multiple=True, help="Only this one.")
@click.option("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
def main(out: Path, parts: Collection[str], output: Path) -> None:
    """Run the parts and merge them; exit code 0 if every part ran and nothing in it failed."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    codes = run_all(len(_info.devices()), partial(_start, out), parts or PARTS)
    print(merge(out, output))
    sys.exit(max(codes.values()))


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
    begin = time.monotonic()
    with (out / f"{part}.txt").open("w") as log:
        code = subprocess.run(
            command, check=False, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": device},
            stdout=log, stderr=subprocess.STDOUT,
        ).returncode  # fmt: skip
    print(f"{part}: exit code {code} after {time.monotonic() - begin:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    main()
