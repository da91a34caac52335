"""Runs every part of the evidence on this machine's GPUs, and merges what they wrote.

    python -m benchmarks.all_parts --out out -o benchmarks/results

One GPU: one part after the other, some ten minutes. Two: the timed parts on the first, the others
on the second; beside those that time single microseconds of the host only the sanitizer runs. What
a part prints goes to OUT/<part>.txt.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from baracuda_kernels._core import _info
from benchmarks import ROOT
from benchmarks.evidence import PARTS, merge

# Starts a part on a GPU and returns its exit code once it has ended.
Start = Callable[[str, int], int]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if every part ran and nothing in it failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all_parts")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    codes = run_all(len(_info.devices()), lambda part, gpu: _start(options.out, part, gpu))
    print(merge(options.out, options.output))
    return max(codes.values())


def run_all(gpus: int, start: Start) -> dict[str, int]:
    """Exit codes by part."""
    if gpus < 2:
        return {part: start(part, 0) for part in PARTS}
    codes: dict[str, int] = {}

    def one(part: str, gpu: int) -> None:
        codes[part] = start(part, gpu)

    def second_gpu(pool: ThreadPoolExecutor) -> None:
        list(pool.map(lambda part: one(part, 1), ("faults", "interop")))
        one("endurance", 1)

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(one, "sanitize", 1)]
        for part in ("ring", "runtime"):
            one(part, 0)
        futures.append(pool.submit(second_gpu, pool))
        for part in ("forward", "tests"):
            one(part, 0)
        for future in futures:
            future.result()
    return codes


def _start(out: Path, part: str, gpu: int) -> int:
    # A folder of its own: parts that end together would merge over each other.
    folder = out / part
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(gpu + 1)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices[gpu]}
    begin = time.monotonic()
    with (out / f"{part}.txt").open("w") as log:
        code = subprocess.run(
            [sys.executable, "-m", "benchmarks.evidence", "--part", part, "--out", str(folder)],
            check=False, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        ).returncode  # fmt: skip
    print(f"{part}: exit code {code} after {time.monotonic() - begin:.0f} s", flush=True)
    if (folder / f"{part}.json").is_file():
        shutil.copy(folder / f"{part}.json", out)
    return code


if __name__ == "__main__":
    sys.exit(main())
