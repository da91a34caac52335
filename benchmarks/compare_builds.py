"""Whether one build is slower than another on the same machine: the same calls, timed by turns.

    python benchmarks/compare_builds.py --device cuda OLD NEW

OLD and NEW are a Python each that has the build installed, beside PyTorch and pytest, or a folder
for PYTHONPATH. A process with each stays alive and is told what to time, one at a time, in random
order. For every call it prints the median of the ratios new/old and its upper 95 % bound, and it
fails if a bound is above its limit. The machine must do nothing else, or the noise alone is.

With --sustained, work on the GPU is timed as in continuous use, at the card's power limit: one call
after the other, each in the windows of `benchmarks/timing.py`, once the card's clock has settled.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from itertools import accumulate, product
from pathlib import Path
from typing import Any, NamedTuple

import click

_IMPORT = "import time; t = time.perf_counter(); import baracuda_kernels; "
_IMPORT += "print(time.perf_counter() - t)"
_SAMPLE_SECONDS = 0.03  # of work in a measurement, at least
# The same on a GPU: short, and after a pause, so that the power limit, which moves the clock by some
# per cent from one second to the next, is not reached.
_GPU_SECONDS, _PAUSE_SECONDS = 0.006, 0.03
_STEPS = 20  # of a ring, in one graph: its checks take the host longer than a step the GPU
# Of tiny rings, so that their host time is what counts.
_RUNS = ("run", "run, args made anew", "run_all of 8")
_ON_GPU = ("kernel", "middle step", "all steps")
_LIMITS = {"import": 1.02, **dict.fromkeys(_RUNS, 1.1), **dict.fromkeys(_ON_GPU, 1.015)}


class Timed(NamedTuple):
    """A call: what of it is timed, and a rank's part of the problem."""

    what: str
    family: str = ""
    dtype: str = ""
    heads: int = 0
    rows: int = 0
    head_dim: int = 0
    causal: bool = False

    def __str__(self) -> str:
        what, *problem = self
        return f"{what}: {', '.join(map(str, problem))}" if self.family else what


def calls(device: str) -> list[Timed]:
    """Every call of a device; the host's own are timed on any."""
    tiny, masks = ([2], [8], [64], [False]), [False, True]
    tables: list[Any] = [(_RUNS, ["host"], ["bf16"], *tiny)]
    if device == "host":
        tables.append((["kernel"], ["host"], ["f32", "bf16"], [4], [384], [64, 128], masks))
    else:
        long, dims = [2048, 8192], [64, 128, 256]
        tables += [
            (_RUNS, ["sm90a"], ["bf16"], *tiny),
            (["kernel"], ["sm90a"], ["bf16"], [16], long, dims, masks),
            (["kernel"], ["sm80"], ["bf16"], [16], long, [64, 128], masks),
            (["kernel"], ["simt"], ["f32", "f16"], [16], [2048], [64, 128], masks),
            # Between the first and the last of a ring, where that is a kernel of its own.
            (["middle step"], ["sm90a"], ["bf16"], [16], [1024, 4096], dims, [False]),
            # Of a rank in a ring of 8, zigzag under a mask.
            (["all steps"], ["sm90a"], ["bf16"], [16], [1024, 2048, 4096, 8192], [128], masks),
            (["all steps"], ["sm90a"], ["bf16"], [16], [4096], [64, 256], masks),
            *((["kernel"], ["sm90a"], ["bf16"], [heads], [rows], [128], masks)
              for heads, rows in ((512, 512), (256, 1000), (64, 4097))),
        ]  # fmt: skip
    return [Timed("import"), *(Timed(*call) for table in tables for call in product(*table))]


# --- in the processes with a build


def worker(sustained: bool) -> None:
    """Answer each call that a line on stdin names by the seconds of one."""
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind the build
    timers: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        if line not in timers:
            timers[line] = _timer(Timed(*json.loads(line)), sustained)
        print(timers[line](), flush=True)


def _timer(x: Timed, sustained: bool) -> Callable[[], float]:
    """Measures a call: seconds of one."""
    import torch

    from benchmarks.timing import SUSTAINED_LEAD_MS, SUSTAINED_MS, sample

    call, on_gpu = _call(x), x.family != "host"
    if x.what in _ON_GPU and on_gpu:
        of_one = _STEPS if x.what == "middle step" else 1

        def seconds(count: int) -> float:
            # In a pause the card falls asleep.
            lead = round(SUSTAINED_LEAD_MS / SUSTAINED_MS * count) if sustained else 2
            if not sustained:
                time.sleep(_PAUSE_SECONDS)
            for _ in range(lead):
                call()
            return sample(call, count) / 1e3

        timed = SUSTAINED_MS / 1e3 if sustained else _GPU_SECONDS
        count = _repeats(timed, seconds(3))
        return lambda: seconds(count) / of_one
    # Others than the fastest of several bursts were held up by what else the machine does.
    timer = timeit.Timer(call, torch.cuda.synchronize if on_gpu else "pass")
    most = 100 if on_gpu else 10**6  # a GPU that falls behind would block the host in the end
    burst = min(most, _repeats(_SAMPLE_SECONDS / 10, min(timer.repeat(10, 1))))
    bursts = _repeats(_SAMPLE_SECONDS, min(timer.repeat(3, burst)))
    return lambda: min(timer.repeat(bursts, burst)) / burst


def _repeats(seconds: float, of_one: float) -> int:
    return max(2, math.ceil(seconds / max(of_one, 1e-7)))


def _call(x: Timed) -> Callable[[], Any]:
    import torch

    import baracuda_kernels as bk
    from baracuda_kernels.testing import preference, torch_qkv
    from benchmarks.calls import step
    from benchmarks.timing import captured, stream
    from tests.helpers.rings import descriptor, rank_arrays

    on_gpu = x.family != "host"
    on = stream() if on_gpu else bk.Stream.host()
    qkv = torch_qkv(
        "normal", x.dtype, 0, heads=x.heads, query_len=x.rows, head_dim=x.head_dim,
        device="cuda" if on_gpu else "cpu",
    )  # fmt: skip
    layout = "zigzag" if x.what == "all steps" and x.causal else "contiguous"
    desc = descriptor(*qkv[:2], x.dtype, is_causal=x.causal, sequence_layout=layout)
    plan = bk.RingAttentionPlan.select(on, desc, preference(x.family, x.dtype))
    if plan.family != x.family:
        raise LookupError(f"{x}: served by {plan.family}")
    ranks = {"run_all of 8": 8, "middle step": 3, "all steps": 8}.get(x.what, 1)
    arrays = [rank_arrays(torch, plan, *qkv, ranks) for _ in range(ranks)]
    if x.what == "middle step":  # again and again, on the state that the first left
        outputs = arrays[0].y, arrays[0].held["accumulator_scratch"]
        step(plan, [qkv] * ranks, 0, 0, *outputs)
        return captured(lambda: step(plan, [qkv] * ranks, 0, 1, *outputs), _STEPS)
    if x.what == "all steps":
        outputs = arrays[0].y, arrays[0].held["accumulator_scratch"]

        def every_step() -> None:
            for number in range(ranks):
                step(plan, [qkv] * ranks, 3, number, *outputs)

        return captured(every_step)
    ring = bk.LocalCommunicator.ring(ranks, device=0 if on_gpu else "host")
    args = [a.args for a in arrays]
    if x.what == "run, args made anew":
        return lambda: plan.run(on, ring[0], bk.RingAttentionArgs(**arrays[0].held))
    if ranks == 1:
        return lambda: plan.run(on, ring[0], args[0])
    return lambda: ring.run_all(on, [plan] * ranks, args)


# --- in the process that compares


Seconds = tuple[list[float], list[float]]  # of old and new


class Build:
    """One build: its Python, and a process that times calls of it."""

    def __init__(self, where: str, sustained: bool = False) -> None:
        self._python, self._environment = where, dict(os.environ)
        if Path(where).is_dir():
            self._python = sys.executable
            self._environment["PYTHONPATH"] = str(Path(where).resolve())
            if not (Path(where) / "baracuda_kernels").is_dir():
                raise SystemExit(f"{where}: got a folder without a build, must hold one")
            # An editable install outranks PYTHONPATH: its checkout would be timed instead.
            found = self._said("import baracuda_kernels; print(baracuda_kernels.__file__)")
            if Path(where).resolve() not in Path(found).resolve().parents:
                raise SystemExit(f"{where}: {self._python} imports {found} instead")
        command, pipe = [self._python, str(Path(__file__).resolve()), "--worker"], subprocess.PIPE
        command += ["--sustained"] if sustained else []
        self._process: Any = subprocess.Popen(
            command, env=self._environment, text=True, stdin=pipe, stdout=pipe
        )

    def _said(self, program: str) -> str:
        command = [self._python, "-P", "-c", program]  # no checkout around may shadow the build
        return subprocess.check_output(command, env=self._environment, text=True).strip()

    def seconds(self, call: Timed) -> float:
        """One measurement."""
        if call.what == "import":
            return min(float(self._said(_IMPORT)) for _ in range(5))
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{call}: the process with the build ended")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def upper_bound(ratios: list[float]) -> float:
    """The 95 % bound of the median: so many values lie above it only by a chance of 1 in 20."""
    count = len(ratios)
    chance = accumulate(math.comb(count, k) / 2**count for k in range(count))
    return next(x for x, below in zip(sorted(ratios), chance, strict=True) if below >= 0.95)


def compare(
    builds: list[Build], wanted: list[Timed], rounds: int, sustained: bool = False
) -> dict[Timed, Seconds]:
    """Seconds of old and new by turns, by call."""
    draw = random.Random(0)
    found: dict[Timed, Seconds] = {one: ([], []) for one in wanted}
    if sustained:
        sys.path.append(str(Path(__file__).resolve().parent.parent))
        from benchmarks.rounds import order, settle

        for one in wanted:
            if one.what in _ON_GPU and one.family != "host":
                settle((0, 1), lambda i: builds[i].seconds(one))  # noqa: B023
            for number in range(rounds):
                for i in order((0, 1), number):
                    found[one][i].append(builds[i].seconds(one))
        return found
    for _ in range(rounds):
        for one in draw.sample(wanted, len(wanted)):
            for i in draw.sample((0, 1), 2):
                found[one][i].append(builds[i].seconds(one))
    return found


@click.command()
@click.argument("old")
@click.argument("new")
@click.option("--device", type=click.Choice(["host", "cuda"]), default="cuda")
@click.option("--rounds", type=click.IntRange(9), default=21, help="Alternations.")
@click.option("--only", default="", help="Only calls with this in their name.")
@click.option("--sustained", is_flag=True, help="Windows at the power limit instead of bursts.")
def main(old: str, new: str, device: str, rounds: int, only: str, sustained: bool) -> None:
    """Whether one build is slower than another: exit code 1 if it is."""
    wanted = [one for one in calls(device) if only in str(one)]
    builds = [Build(where, sustained) for where in (old, new)]
    compare(builds, wanted, 1)  # everything is loaded and warm after it
    found = compare(builds, wanted, rounds, sustained)
    for build in builds:
        build.close()
    slower = 0
    for one, sides in found.items():
        ratios = [b / a for a, b in zip(*sides, strict=True)]
        bound, limit = upper_bound(ratios), _LIMITS[one.what]
        slower += bound > limit
        times = " and ".join(f"{statistics.median(side) * 1e6:.2f}" for side in sides)
        print(
            f"{one}: {times} us; x{statistics.median(ratios):.4f}, 95 % below x{bound:.4f}, "
            f"limit x{limit}" + (" SLOWER" if bound > limit else "")
        )
    print(f"{slower} of {len(wanted)} calls slower than their limit, {rounds} alternations")
    sys.exit(1 if slower or not wanted else 0)


if __name__ == "__main__":
    worker("--sustained" in sys.argv) if "--worker" in sys.argv else main()
