"""Tests and measures the installed package on a GPU machine, in parts.

    python -m benchmarks.evidence --part PART --out DIR
    python -m benchmarks.evidence --merge DIR -o benchmarks/results

Each part ends within 8 minutes and writes DIR/<part>.json; the parts in DIR that agree in card and
source hash are merged into DIR/<card>.json after each. A part refuses to run where the installed
build was not made of the sources beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import ROOT
from benchmarks.rows import SCHEMA, Row, machine, now, slug, write
from benchmarks.source import SourceMismatch, require_own_sources

PARTS = (
    "host", "tests", "ranks", "peers", "forward", "backward", "error", "ring", "runtime", "faults",
    "sanitize", "interop", "endurance",
)  # fmt: skip
LIMIT_SECONDS = 480
_REPORT_SECONDS = 15
_STOPPED = 124  # the exit code of what was stopped
_RANKS = "tests/multi_rank"
_FAULTS = f"{_RANKS}/test_faults.py"
_PEERS = (f"{_RANKS}/test_peer_ring.py", f"{_RANKS}/test_peer_faults.py")
_INTEROP = "tests/interop"
_TORCH = f"{_INTEROP}/test_torch_gpu.py"
# What takes long, and what measures the device's memory, has the GPU to itself.
_ELSEWHERE = "endurance or device_memory"
_QUICK = ("-m", f"not ({_ELSEWHERE})")
# What takes several GPUs is no part of one GPU's evidence.
_ONE_GPU = ("-m", f"not ({_ELSEWHERE}) and not multi_gpu")
# What has rows and no tests, by the modules that measure it.
_MEASURED = {
    "host": ("host_cost",),
    "forward": ("forward",),
    "backward": ("backward", "ring_backward"),
    "error": ("error", "gradient_error"),
    "ring": ("ring",),
    "runtime": ("balance", "overlap", "memory"),
}
Counts = dict[str, int]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if the part ran and nothing in it failed, 1 if something did, 2 if refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where <part>.json goes")
    parser.add_argument("--merge", type=Path, metavar="DIR", help="merge the parts in DIR")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    if (options.part is None) == (options.merge is None):
        parser.error("give either --part with --out, or --merge")
    if options.merge is not None:
        print(merge(options.merge, options.output))
        return 0
    if options.out is None:
        parser.error("--part needs --out")
    try:
        evidence = run_part(options.part)
    except SourceMismatch as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    write(options.out / f"{options.part}.json", evidence)
    print(merge(options.out, options.out))
    return 1 if evidence["tests"]["failed"] else 0


def run_part(part: str) -> dict[str, Any]:
    """One part's evidence: the header, its tests and its rows."""
    digest = require_own_sources(ROOT)
    start = time.monotonic()
    counts, rows = _measured(part) if part in _MEASURED else _TESTED[part]()
    return {
        "schema": SCHEMA,
        "part": part,
        **machine(),
        "date": now(),
        "source_hash": digest,
        "seconds": round(time.monotonic() - start, 1),
        "tests": counts,
        "rows": rows,
    }


def merge(folder: Path, output: Path) -> Path:
    """Merge the parts in `folder` into `output`/<card>.json; the file's path.

    Raises
    ------
    SystemExit
        If there are no parts, or if they disagree in schema, card or source hash.
    """
    parts = [json.loads(p.read_text()) for n in PARTS if (p := folder / f"{n}.json").is_file()]
    if not parts:
        raise SystemExit(f"{folder}: holds no part of {', '.join(PARTS)}")
    for field in ("schema", "card", "source_hash"):
        values = {part[field] for part in parts}
        if len(values) > 1:
            raise SystemExit(f"{folder}: the parts disagree in {field}: {sorted(map(str, values))}")
    newest = max(parts, key=lambda part: part["date"])
    tests = {k: sum(p["tests"][k] for p in parts) for k in ("passed", "failed", "skipped")}
    merged = {
        **{k: newest[k] for k in ("schema", "card", "driver", "cuda", "date", "source_hash")},
        "tests": tests,
        "rows": [row for part in parts for row in part["rows"]],
    }
    path = output / f"{slug(newest['card'])}.json"
    write(path, merged)
    return path


def _pytest(*arguments: str, seconds: float = LIMIT_SECONDS - 20) -> Counts:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--require-gpu", f"--junitxml={report}"]
        code = _run([*command, *arguments], seconds=seconds)
        if not report.is_file():
            return {"passed": 0, "failed": 1, "skipped": 0}
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        totals = [
            {k: int(s.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
            for s in suites
        ]
    tests, failures, errors, skipped = (
        sum(t[k] for t in totals) for k in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    if code == _STOPPED or (code != 0 and failed == 0):
        failed += 1  # a time-out, or a failure outside of any test
    return {"passed": tests - failures - errors - skipped, "failed": failed, "skipped": skipped}


def _run(command: list[str], *, seconds: float, environment: dict[str, str] | None = None) -> int:
    print("$", " ".join(command), flush=True)
    environment = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"stopped after {seconds:.0f} s", file=sys.stderr)
            process.send_signal(signal.SIGINT)  # pytest still reports what has run
        try:
            process.wait(_REPORT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        return _STOPPED


def _tests() -> tuple[Counts, list[Row]]:
    # Side by side: the unit tests keep the CPU busy and leave the GPU alone; those on the GPU leave
    # most of it idle, as they wait for the host. How the wheel is packed is CI's matter: it needs
    # tools that a GPU machine may lack.
    unit = "tests/unit"
    elsewhere = (unit, _RANKS, _INTEROP, "tests/packaging")
    rest = ("tests", *_QUICK, *(f"--ignore={path}" for path in elsewhere))
    return _side_by_side([(unit,), *_shares(rest)]), []


def _shares(arguments: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A run of pytest as several that are all of it, as many as there are CPUs for."""
    count = max(1, min(4, (os.cpu_count() or 1) // 4))
    return [(*arguments, "--share", f"{number}/{count}") for number in range(count)]


def _side_by_side(runs: list[tuple[str, ...]], **options: Any) -> Counts:
    with ThreadPoolExecutor(len(runs)) as pool:
        return _sum(list(pool.map(lambda run: _pytest(*run, **options), runs)))


def _ranks() -> tuple[Counts, list[Row]]:
    others = (f"--ignore={path}" for path in (_FAULTS, *_PEERS))
    return _pytest(_RANKS, *_ONE_GPU, *others), []


def _peers() -> tuple[Counts, list[Row]]:
    return _pytest(*_PEERS, *_ONE_GPU), []


def _faults() -> tuple[Counts, list[Row]]:
    from benchmarks import faults

    counts = _pytest(_FAULTS, *_QUICK)
    try:
        return counts, faults.rows()
    except AssertionError as error:  # of a rank that ended otherwise than it must
        print(error, file=sys.stderr)
        return {**counts, "failed": counts["failed"] + 1}, []


def _interop() -> tuple[Counts, list[Row]]:
    # The host time of a call is among the first, so nothing runs beside them. The others start
    # programs of their own, whose start takes longer than their work.
    counts = [_pytest(_TORCH, "-m", "gpu and not multi_rank", seconds=90)]
    others = (_INTEROP, f"--ignore={_TORCH}", "-m", "gpu and not endurance and not multi_gpu")
    ranks = (_TORCH, "-m", "gpu and multi_rank")
    counts.append(_side_by_side([*_shares(ranks), others], seconds=LIMIT_SECONDS - 110))
    return _sum(counts), []


def _endurance() -> tuple[Counts, list[Row]]:
    # What measures the device's memory comes alone; the others wait for deadlines most of the time.
    alone, others = "device_memory and not multi_gpu", "endurance and not (device_memory or multi_gpu)"
    counts = _pytest("tests", "-m", alone, seconds=LIMIT_SECONDS / 2)
    beside = _side_by_side(_shares(("tests", "-m", others)), seconds=LIMIT_SECONDS / 2 - 30)
    return _sum([counts, beside]), []


def _measured(part: str) -> tuple[Counts, list[Row]]:
    counts, found = _no_tests(), []
    for name in _MEASURED[part]:
        module = importlib.import_module(f"benchmarks.{name}")
        rows = module.rows()
        for row in module.worse(rows) if hasattr(module, "worse") else ():
            print(f"{name}: worse than it may be: {row}", file=sys.stderr)
            counts["failed"] += 1
        found += rows
    return counts, found


def _sanitize() -> tuple[Counts, list[Row]]:
    folders = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    sanitizer = shutil.which("compute-sanitizer", path=folders)
    if sanitizer is None:
        raise SystemExit("the part sanitize needs the CUDA toolkit's compute-sanitizer")
    counts = _no_tests()
    one_each = ["--one-each"]
    tools = (
        ("memcheck", []), ("racecheck", [*one_each, "--no-handed-over"]), ("synccheck", one_each),
    )  # fmt: skip
    for tool, grid in tools:
        code = _run(
            [
                *(sanitizer, "--tool", tool, "--error-exitcode", "9"),
                *("--kernel-name", "kns=baracuda"),
                *(sys.executable, "-m", "benchmarks.sanitize_grid", *grid),
            ],
            seconds=(LIMIT_SECONDS - 20) / len(tools),
            # Every tensor an allocation of its own, or memcheck cannot see its end.
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        counts["passed" if code == 0 else "failed"] += 1
    return counts, []


def _sum(counts: list[Counts]) -> Counts:
    return {name: sum(count[name] for count in counts) for name in counts[0]}


def _no_tests() -> Counts:
    return {"passed": 0, "failed": 0, "skipped": 0}


_TESTED = {
    "tests": _tests, "ranks": _ranks, "peers": _peers, "faults": _faults, "sanitize": _sanitize,
    "interop": _interop, "endurance": _endurance,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
