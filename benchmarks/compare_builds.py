"""Whether one build is slower than another on the same machine: the same calls, timed by turns.

    python benchmarks/compare_builds.py --device cuda OLD NEW

OLD and NEW are a Python each that has the build installed, or a folder for PYTHONPATH. A process
with each stays alive and is told what to time, one at a time, in random order. For every call it
prints the median of the ratios new/old and its upper 95 % bound, by order statistics. It fails if a
bound is above the limit: 1.015 for kernels, 1.1 for a call's host time, 1.02 for the import. The
machine must do nothing else, or the noise alone is above them.

It needs nothing of this folder: the builds' environments have NumPy, and PyTorch for ``cuda``.
"""

from __future__ import annotations

import argparse
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

_IMPORT = "import time; t = time.perf_counter(); import baracuda_kernels; "
_IMPORT += "print(time.perf_counter() - t)"
_SAMPLE_SECONDS = 0.03  # of work in a measurement, at least
# The same on a GPU: short, and after a pause, so that the power limit, which moves the clock by some
# per cent from one second to the next, is not reached.
_GPU_SECONDS, _PAUSE_SECONDS = 0.006, 0.03
_HEADS, _TINY = 16, 8
_STEPS = 20  # of a ring, in one graph


class Case(NamedTuple):
    """A call to time; `what` is "kernel", "run", "run_all" or "import"."""

    what: str
    limit: float
    device: str = "host"
    family: str = ""
    dtype: str = "bf16"
    head_dim: int = 64
    length: int = _TINY
    causal: bool = False
    ranks: int = 1
    anew: bool = False

    @property
    def name(self) -> str:
        """For people."""
        if self.what == "import":
            return "import"
        if self.what == "step":
            return f"{self.family} {self.dtype} D {self.head_dim} S {self.length} a ring's middle step"
        if self.what == "kernel":
            mask = "causal" if self.causal else "full"
            return f"{self.family} {self.dtype} D {self.head_dim} S {self.length} {mask}"
        args = ", args made anew" if self.anew else ""
        return f"host time of {self.what}, {self.device}, P {self.ranks}{args}"


def cases(device: str) -> list[Case]:
    """Every case of a device; the host's own are timed on any."""
    found = [Case("import", 1.02)]
    found += [Case("run", 1.1, d, anew=a) for d in sorted({device, "host"}) for a in (False, True)]
    found += [Case("run_all", 1.1, d, ranks=8) for d in sorted({device, "host"})]
    if device == "host":
        return found + [
            Case("kernel", 1.015, device, "host", dtype, head_dim, 384, causal)
            for dtype in ("f32", "bf16")
            for head_dim in (64, 128)
            for causal in (False, True)
        ]
    tables = (
        ("sm90a", "bf16", (64, 128, 256), (2048, 8192)),
        ("sm80", "bf16", (64, 128), (2048, 8192)),
        ("simt", "f32", (64, 128), (2048,)),
        ("simt", "f16", (64, 128), (2048,)),
    )
    # Steps between the first and the last of a ring, where that is a kernel of its own.
    found += [
        Case("step", 1.015, device, "sm90a", "bf16", head_dim, length)
        for head_dim in (64, 128, 256)
        for length in (1024, 4096)
    ]
    return found + [
        Case("kernel", 1.015, device, family, dtype, head_dim, length, causal)
        for family, dtype, dims, lengths in tables
        for head_dim in dims
        for length in lengths
        for causal in (False, True)
    ]


# --- in the processes with a build


def worker() -> None:
    """Answer each case that a line on stdin names by the seconds of one call."""
    timers: dict[Case, Callable[[], float]] = {}
    for line in sys.stdin:
        case = Case(*json.loads(line))
        try:
            if case not in timers:
                timers[case] = _timer(case)
            answer: dict[str, Any] = {"seconds": timers[case]()}
        except Exception as error:  # noqa: BLE001 - the parent must hear of any
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def _timer(case: Case) -> Callable[[], float]:
    """Measures the case: seconds of one call."""
    call, synchronize = _call(case)
    if case.what in ("kernel", "step") and case.device == "cuda":
        count = _repeats(_GPU_SECONDS, _gpu_seconds(call, synchronize, 3))
        of_one = _STEPS if case.what == "step" else 1
        return lambda: _gpu_seconds(call, synchronize, count) / of_one
    # A GPU that falls behind would block the host in the end.
    most = 100 if case.device == "cuda" else 10**6
    burst = min(most, _repeats(_SAMPLE_SECONDS / 10, _host_seconds(call, synchronize, 1, 10)))
    bursts = _repeats(_SAMPLE_SECONDS, burst * _host_seconds(call, synchronize, burst, 3))
    return lambda: _host_seconds(call, synchronize, burst, bursts)


def _repeats(seconds: float, of_one: float) -> int:
    return max(2, math.ceil(seconds / max(of_one, 1e-7)))


def _host_seconds(call: Any, synchronize: Any, burst: int, bursts: int) -> float:
    """Of a call in the fastest burst: others were held up by what else the machine does."""
    least = math.inf
    for _ in range(bursts):
        synchronize()
        start = time.perf_counter()
        for _ in range(burst):
            call()
        least = min(least, time.perf_counter() - start)
    synchronize()
    return least / burst


def _gpu_seconds(call: Any, synchronize: Any, count: int) -> float:
    import torch

    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    time.sleep(_PAUSE_SECONDS)
    for _ in range(2):  # the card wakes up
        call()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / count


def _call(case: Case) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The call, and what waits for the device."""
    import baracuda_kernels as bk

    stream, empty, synchronize = _memory(case)
    heads = 2 if case.what.startswith("run") else 4 if case.device == "host" else _HEADS
    shape = (1, heads, case.length, case.head_dim)
    make = bk.FlashSdpaDescriptor if case.what == "kernel" else bk.RingAttentionDescriptor
    descriptor = make(1, heads, case.length, case.length, case.head_dim, is_causal=case.causal,
                      element=bk.ElementKind.parse(case.dtype))  # fmt: skip
    if case.what == "kernel":
        plan = bk.FlashSdpaPlan.select(stream, descriptor, _preference(case))
        if plan.family != case.family:
            raise RuntimeError(f"served by {plan.family}")
        kernel_args = bk.FlashSdpaArgs(**{name: empty(shape) for name in "qkvy"})
        return lambda: plan.run(stream, kernel_args), synchronize
    ring_plan = bk.RingAttentionPlan.select(stream, descriptor)
    if case.what == "step":
        operands = {name: empty(shape) for name in "qkv"}
        operands["accumulator_scratch"] = empty((ring_plan.accumulator_scratch_bytes // 2,))
        middle = {"rank": 1, "origin": 0, "world_size": 3, "last": False}
        ring_plan.step(stream, **operands, **middle, first=True)
        return _captured(lambda on: ring_plan.step(on, **operands, **middle, first=False,
                                                   follows=True)), synchronize  # fmt: skip
    ring = bk.LocalCommunicator.ring(case.ranks, device="host" if case.device == "host" else 0)
    # At P = 1 no scratch is wanted; the accumulator is of f32.
    names = ("kv_scratch_a", "kv_scratch_b")[: 2 * (case.ranks > 1)]
    state = (ring_plan.accumulator_scratch_bytes // 2 + 1,)
    per_rank = []
    for _ in range(case.ranks):
        given = {name: empty(shape) for name in "qkvy"}
        given |= {name: empty((ring_plan.kv_scratch_elements,)) for name in names}
        per_rank.append(given | {"accumulator_scratch": empty(state)} if names else given)
    args = [bk.RingAttentionArgs(**given) for given in per_rank]
    if case.what == "run_all":
        return lambda: ring.run_all(stream, ring_plan, args), synchronize
    if case.anew:
        return (
            lambda: ring_plan.run(stream, ring[0], bk.RingAttentionArgs(**per_rank[0])),
            synchronize,
        )
    return lambda: ring_plan.run(stream, ring[0], args[0]), synchronize


def _captured(step: Callable[[Any], None]) -> Callable[[], None]:
    """Steps as a graph: a step's checks take the host longer than the GPU needs for a short one."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_STEPS):
            step(torch.cuda.current_stream())

    def replay(kept: Any = step) -> None:  # what the steps read and write lives as long as the graph
        graph.replay()

    return replay


def _memory(case: Case) -> tuple[Any, Callable[[tuple[int, ...]], Any], Callable[[], Any]]:
    """A stream, what makes an array of random elements, and what waits."""
    import baracuda_kernels as bk

    if case.device == "cuda":
        import torch

        dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[case.dtype]
        stream = bk.Stream(torch.cuda.current_stream())
        torch.manual_seed(0)
        return (
            stream,
            lambda shape: torch.randn(shape, dtype=dtype, device="cuda"),
            torch.cuda.synchronize,
        )
    import ml_dtypes
    import numpy as np

    rng = np.random.default_rng(0)
    host = np.dtype({"bf16": ml_dtypes.bfloat16, "f32": np.float32}[case.dtype])

    def aligned(shape: tuple[int, ...]) -> Any:
        values = rng.standard_normal(shape, dtype=np.float32).astype(host)
        raw = np.empty(values.nbytes + 256, dtype=np.uint8)
        start = -raw.ctypes.data % 256
        array = raw[start : start + values.nbytes].view(host).reshape(shape)
        array[...] = values
        return array

    return bk.Stream.host(), aligned, lambda: None


def _preference(case: Case) -> Any:
    """What only the case's family meets."""
    import baracuda_kernels as bk

    if case.family == "host":
        return None
    if case.family == "simt":
        return bk.PlanPreference(math_precision=bk.MathPrecision.F32)
    return bk.PlanPreference(
        math_precision=bk.MathPrecision.BF16, allow_sm90a=case.family == "sm90a"
    )


# --- in the process that compares


class Build:
    """One build: its Python, and a process that times calls of it."""

    def __init__(self, where: str, folder: str) -> None:
        environment = dict(os.environ)
        self._python = where
        if Path(where).is_dir():
            self._python = sys.executable
            environment["PYTHONPATH"] = str(Path(where).resolve())
        # -P, and a folder of its own: no checkout may shadow the build.
        self._start: dict[str, Any] = {
            "cwd": folder,
            "env": environment,
            "text": True,
            "stdout": subprocess.PIPE,
        }
        # An editable install outranks PYTHONPATH: its checkout would be timed in the folder's place.
        if Path(where).is_dir():
            find = "import importlib.util as u; print(getattr(u.find_spec('baracuda_kernels'), 'origin', 'nothing'))"
            command = [self._python, "-P", "-c", find]
            found = subprocess.run(command, check=True, **self._start).stdout.strip()
            if Path(where).resolve() not in Path(found).resolve().parents:
                raise SystemExit(f"{where}: {self._python} imports {found} instead")
        self._process: Any = subprocess.Popen(
            [self._python, "-P", str(Path(__file__).resolve()), "--worker"],
            stdin=subprocess.PIPE,
            **self._start,
        )

    def seconds(self, case: Case) -> float:
        """One measurement."""
        if case.what == "import":
            return min(self._import_seconds() for _ in range(5))
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            raise RuntimeError(f"{case.name}: {answer['error']}")
        return float(answer["seconds"])

    def _import_seconds(self) -> float:
        command: list[str] = [self._python, "-P", "-c", _IMPORT]
        return float(subprocess.run(command, check=True, **self._start).stdout)

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


def compare(builds: list[Build], wanted: list[Case], rounds: int) -> dict[Case, list[list[float]]]:
    """Seconds of old and new by turns, by case."""
    draw = random.Random(0)
    found: dict[Case, list[list[float]]] = {case: [[], []] for case in wanted}
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
        bound = upper_bound(ratios)
        slower += bound > case.limit
        times = " and ".join(f"{statistics.median(side) * 1e6:.2f}" for side in (old, new))
        print(
            f"{case.name}: {times} us; x{statistics.median(ratios):.4f}, 95 % below x{bound:.4f}, "
            f"limit x{case.limit}" + (" SLOWER" if bound > case.limit else "")
        )
    print(f"{slower} of {len(wanted)} calls slower than their limit, {given.rounds} alternations")
    return 1 if slower or not wanted else 0


if __name__ == "__main__":
    sys.exit(main())
