"""Runs every part of the evidence on this machine's GPUs, and merges what they wrote.

    python -m benchmarks.all_parts --out out -o benchmarks/results

One GPU: one part after the other, some half an hour. Two or four: side by side, a part that measures
time or memory alone on its GPU; beside the one that times single microseconds of the host nothing
runs. What a part prints goes to OUT/<part>.txt. `--part` runs some parts alone.
"""

from __future__ import annotations

import argparse
import os
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
# By number of GPUs, the lanes of each: a GPU and the parts that follow one another there, about
# equally long. Lanes on one GPU run side by side.
_LANES = {
    1: ((0, " ".join(part for part in PARTS if part != _HOST)),),
    2: (
        (0, "forward backward error ring runtime peers"),
        (1, "sanitize tests ranks faults interop endurance"),
    ),
    4: (
        (0, "forward error ring runtime"), (1, "backward faults"), (2, "endurance interop"),
        (3, "tests"), (3, "peers"), (3, "ranks sanitize"),
    ),
}  # fmt: skip

# Starts a part on a GPU and returns its exit code once it has ended.
Start = Callable[[str, int], int]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if every part ran and nothing in it failed."""
    options = parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    gpus = len(_info.devices())
    codes = run_all(gpus, lambda part, gpu: _start(options.out, part, gpu), options.part or PARTS)
    print(merge(options.out, options.output))
    return max(codes.values())


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.all_parts")
    made.add_argument("--out", type=Path, required=True, metavar="DIR")
    made.add_argument("--part", choices=PARTS, action="append", help="these parts alone")
    made.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    return made


def run_all(gpus: int, start: Start, parts: Collection[str] = PARTS) -> dict[str, int]:
    """Exit codes by part."""

    def run_lane(gpu: int, names: str) -> dict[str, int]:
        return {part: start(part, gpu) for part in names.split() if part in parts}

    codes = run_lane(0, _HOST)
    lanes = _LANES[max(number for number in _LANES if number <= max(gpus, 1))]
    with ThreadPoolExecutor(len(lanes)) as pool:
        for found in pool.map(run_lane, *zip(*lanes, strict=True)):
            codes |= found
    return codes


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
