"""Runs every part of the evidence on this machine's GPUs, and merges what they wrote.

    python -m benchmarks.all_parts --out out -o benchmarks/results

One GPU: one part after the other, some half an hour. On up to four they run side by side, each
alone on its GPU; beside the one that times single microseconds of the host nothing runs. What a
part prints goes to OUT/<part>.txt. `--part` runs some parts alone.
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from baracuda_kernels._core import _info
from benchmarks import ROOT
from benchmarks.evidence import PARTS, merge

# The host's microseconds: they come first, and nothing runs beside them.
_HOST = "host"
_MOST_GPUS = 4  # more parts side by side would want more of the host than it has

# Starts a part on a GPU and returns its exit code once it has ended.
Start = Callable[[str, int], int]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if every part ran and nothing in it failed."""
    options = parser().parse_args(arguments)
    gpus, out = len(_info.devices()), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    codes = run_all(gpus, lambda part, gpu: _start(out, part, gpu), options.part or PARTS)
    print(merge(out, options.output))
    return max(codes.values())


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.all_parts")
    made.add_argument("--out", type=Path, required=True, metavar="DIR")
    made.add_argument("--part", choices=PARTS, action="append", help="these parts alone")
    made.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    return made


def run_all(gpus: int, start: Start, parts: Collection[str] = tuple(PARTS)) -> dict[str, int]:
    """Exit codes by part."""
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
    sys.exit(main())
