"""Whether one build is slower than another on the same machine: the same calls, timed by turns.

    python benchmarks/compare_builds.py --device cuda OLD NEW

OLD and NEW are a Python each that has the build installed, or a folder for PYTHONPATH. A process
with each stays alive and is told what to time, one at a time, in random order. For every call it
prints the median of the ratios new/old and its upper 95 % bound, by order statistics. It fails if a
bound is above the limit: 1.015 for kernels, 1.1 for a call's host time, 1.02 for the import. The
machine must do nothing else, or the noise alone is above them.

Of this folder it needs `bits.py` alone, whose calls it times: the builds' environments have NumPy,
and PyTorch for ``cuda``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import bits

_IMPORT = "import time; t = time.perf_counter(); import baracuda_kernels; "
_IMPORT += "print(time.perf_counter() - t)"
_SAMPLE_SECONDS = 0.03  # of work in a measurement, at least
# The same on a GPU: short, and after a pause, so that the power limit, which moves the clock by some
# per cent from one second to the next, is not reached.
_GPU_SECONDS, _PAUSE_SECONDS = 0.006, 0.03
_STEPS = 20  # of a ring, in one graph
_LIMITS = {"import": 1.02, "host time": 1.1, "kernel": 1.015, "step": 1.015}


class Timed(NamedTuple):
    """A call to time: "import", the "host time" of a call, a "kernel", or a ring's middle "step"."""

    what: str
    device: str = "host"
    case: bits.Case | None = None

    @property
    def name(self) -> str:
        """For people."""
        where = f", {self.device}" if self.what == "host time" else ""
        return self.what if self.case is None else f"{self.what}{where}, {self.case.name}"


def cases(device: str) -> list[Timed]:
    """Every call of a device; the host's own are timed on any."""
    found = [Timed("import")]
    for where, family in {"host": "host", device: "sm90a" if device == "cuda" else "host"}.items():
        tiny = bits.Case("ring", family, "bf16", 8, 8, 64)
        for changes in ({"form": "one rank"}, {"form": "args made anew"}, {"ranks": 8}):
            found.append(Timed("host time", where, tiny._replace(**changes)))
    tables = [("host", dtype, (64, 128), (384,)) for dtype in ("f32", "bf16")]
    if device == "cuda":
        tables = [
            ("sm90a", "bf16", (64, 128, 256), (2048, 8192)),
            ("sm80", "bf16", (64, 128), (2048, 8192)),
            ("simt", "f32", (64, 128), (2048,)),
            ("simt", "f16", (64, 128), (2048,)),
        ]
        # Steps between the first and the last of a ring, where that is a kernel of its own.
        for head_dim, length in itertools.product((64, 128, 256), (1024, 4096)):
            case = bits.Case("steps", "sm90a", "bf16", length, length, head_dim, ranks=3,
                             form="middle step", heads=16, kv_heads=16)  # fmt: skip
            found.append(Timed("step", device, case))
    heads = 4 if device == "host" else 16
    for family, dtype, dims, lengths in tables:
        for head_dim, length, causal in itertools.product(dims, lengths, (False, True)):
            case = bits.Case("flash", family, dtype, length, length, head_dim, causal, heads=heads,
                             kv_heads=heads)  # fmt: skip
            found.append(Timed("kernel", device, case))
    return found


# --- in the processes with a build


def worker() -> None:
    """Answer each call that a line on stdin names by the seconds of one."""
    timers: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        try:
            if line not in timers:
                what, device, case = json.loads(line)
                timers[line] = _timer(what, device, bits.Case(*case))
            answer: dict[str, Any] = {"seconds": timers[line]()}
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the parent must hear of any
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def _timer(what: str, device: str, case: bits.Case) -> Callable[[], float]:
    """Measures a call: seconds of one."""
    memory = bits.Memory(device)
    call, _ = bits.prepared(memory, case)
    if device == "cuda" and what != "host time":
        of_one = 1
        if what == "step":
            call, of_one = _captured(call), _STEPS
        count = _repeats(_GPU_SECONDS, _gpu_seconds(call, 3))
        return lambda: _gpu_seconds(call, count) / of_one
    # A GPU that falls behind would block the host in the end.
    most = 100 if device == "cuda" else 10**6
    of_burst = _repeats(_SAMPLE_SECONDS / 10, _host_seconds(call, memory.wait, 1, 10))
    burst = min(most, of_burst)
    bursts = _repeats(_SAMPLE_SECONDS, burst * _host_seconds(call, memory.wait, burst, 3))
    return lambda: _host_seconds(call, memory.wait, burst, bursts)


def _repeats(seconds: float, of_one: float) -> int:
    return max(2, math.ceil(seconds / max(of_one, 1e-7)))


def _host_seconds(call: Any, wait: Any, burst: int, bursts: int) -> float:
    """Of a call in the fastest burst: others were held up by what else the machine does."""
    least = math.inf
    for _ in range(bursts):
        wait()
        start = time.perf_counter()
        for _ in range(burst):
            call()
        least = min(least, time.perf_counter() - start)
    wait()
    return least / burst


def _gpu_seconds(call: Any, count: int) -> float:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    time.sleep(_PAUSE_SECONDS)
    for _ in range(2):  # the card wakes up
        call()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / count


def _captured(step: Callable[[Any], None]) -> Callable[[], None]:
    """Steps as a graph: a step's checks take the host longer than the GPU needs for a short one."""
    import torch

    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_STEPS):
            step(torch.cuda.current_stream())
    # What the steps read and write lives as long as the graph.
    return lambda kept=step: graph.replay()


# --- in the process that compares


class Build:
    """One build: its Python, and a process that times calls of it."""

    def __init__(self, where: str, folder: str) -> None:
        environment = dict(os.environ)
        self._python = where
        # A folder of its own: no checkout may shadow the build.
        self._start: dict[str, Any] = {
            "cwd": folder, "env": environment, "text": True, "stdout": subprocess.PIPE,
        }  # fmt: skip
        if Path(where).is_dir():
            self._python, environment["PYTHONPATH"] = sys.executable, str(Path(where).resolve())
            # An editable install outranks PYTHONPATH: its checkout would be timed in the folder's place.
            found = self._said("import importlib.util as u; "
                               "print(getattr(u.find_spec('baracuda_kernels'), 'origin', 'nothing'))")
            if Path(where).resolve() not in Path(found).resolve().parents:
                raise SystemExit(f"{where}: {self._python} imports {found} instead")
        self._process: Any = subprocess.Popen(
            [self._python, str(Path(__file__).resolve()), "--worker"],
            stdin=subprocess.PIPE, **self._start,
        )  # fmt: skip

    def _said(self, program: str) -> str:
        command = [self._python, "-P", "-c", program]
        return str(subprocess.run(command, check=True, **self._start).stdout).strip()

    def seconds(self, timed: Timed) -> float:
        """One measurement."""
        if timed.case is None:
            return min(float(self._said(_IMPORT)) for _ in range(5))
        self._process.stdin.write(json.dumps(timed) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            raise RuntimeError(f"{timed.name}: {answer['error']}")
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process."""
        with self._process:  # which closes the pipes and waits
            self._process.stdin.close()


def upper_bound(ratios: list[float]) -> float:
    """The 95 % bound of the median: so many values lie above it only by a chance of 1 in 20."""
    count, below = len(ratios), 0.0
    probability = 0.5**count
    for k, value in enumerate(sorted(ratios)):
        below += probability
        probability *= (count - k) / (k + 1)
        if below >= 0.95:
            return value
    return max(ratios)


def compare(builds: list[Build], wanted: list[Timed], rounds: int) -> dict[Timed, list[list[float]]]:
    """Seconds of old and new by turns, by case."""
    draw = random.Random(0)
    found: dict[Timed, list[list[float]]] = {case: [[], []] for case in wanted}
    for _ in range(rounds):
        for case in draw.sample(wanted, len(wanted)):
            for i in draw.sample((0, 1), 2):
                found[case][i].append(builds[i].seconds(case))
    return found


def main() -> int:
    """Compare, print, and say whether all is as fast as it was."""
    if sys.argv[1:] == ["--worker"]:
        worker()
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--device", choices=("host", "cuda"), default="cuda")
    parser.add_argument("--rounds", type=int, default=21, help="alternations, 9 or more")
    parser.add_argument("--only", default="", help="only cases with this in their name")
    given = parser.parse_args()
    if given.rounds < 9:
        parser.error("--rounds: 9 or more")
    wanted = [case for case in cases(given.device) if given.only in case.name]
    with tempfile.TemporaryDirectory() as folder:
        builds = [Build(where, folder) for where in (given.old, given.new)]
        compare(builds, wanted, 1)  # everything is loaded and warm after it
        found = compare(builds, wanted, given.rounds)
        for build in builds:
            build.close()
    slower = 0
    for case in wanted:
        old, new = found[case]
        ratios = [b / a for a, b in zip(old, new, strict=True)]
        bound, limit = upper_bound(ratios), _LIMITS[case.what]
        slower += bound > limit
        times = " and ".join(f"{statistics.median(side) * 1e6:.2f}" for side in (old, new))
        print(
            f"{case.name}: {times} us; x{statistics.median(ratios):.4f}, 95 % below x{bound:.4f}, "
            f"limit x{limit}" + (" SLOWER" if bound > limit else "")
        )
    print(f"{slower} of {len(wanted)} calls slower than their limit, {given.rounds} alternations")
    return 1 if slower or not wanted else 0


if __name__ == "__main__":
    sys.exit(main())
