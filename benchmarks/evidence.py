"""Tests and measures the installed package on a GPU machine, in parts.

    python -m benchmarks.evidence --part PART --out DIR
    python -m benchmarks.evidence --merge DIR -o benchmarks/results

A part writes DIR/<part>.json; merged they are <card>.json. If a part is stopped while it measures calls,
what it has measured lies in DIR/<part>.partial.json, and the same command goes on from there. See
docs/developer-guide.md.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click

from benchmarks import ROOT
from benchmarks.rows import Measurement, Row, head, read, rows_by_part, slug, write
from benchmarks.source import SourceMismatch, require_own_sources

LIMIT_SECONDS = 480
_RANKS = "tests/multi_rank"
_FAULTS = f"{_RANKS}/test_faults.py"
_PEERS = (f"{_RANKS}/test_peer_ring.py", f"{_RANKS}/test_peer_faults.py")
_NO_FAULTS = [f"--ignore={path}" for path in (_FAULTS, *_PEERS)]
_INTEROP = "tests/interop"
_TORCH = f"{_INTEROP}/test_torch_gpu.py"
_SANITIZER = "tests/gpu/test_compute_sanitizer.py"
# What takes long, and what measures the device's memory, has the GPU to itself. What takes several
# GPUs is no part of one GPU's evidence; docs/developer-guide.md has its command.
_ONE_GPU = ("-m", "not (endurance or device_memory) and not multi_gpu")
# Of tests: "passed", "failed" and "skipped".
Counts = Counter[str]


class NotEnded(Exception):
    """A part has more to measure than there was time for."""


def run_part(part: str, out: Path, seconds: float = math.inf) -> dict[str, Any]:
    """One part's evidence, also in `out`/<part>.json: the header, its tests and its rows.

    Raises
    ------
    NotEnded
        If after `seconds` there are calls left to measure.
    """
    digest = require_own_sources(ROOT)
    start = time.monotonic()
    test, modules = PARTS[part]
    counts = test()
    so_far = _SoFar(out / f"{part}.partial.json", {**head(digest), "part": part}, start + seconds)
    rows, failed = _measured(modules, so_far.rows_of)
    counts["failed"] += failed
    made = {
        **head(digest),
        "part": part,
        "seconds": round(time.monotonic() - start, 1),
        "tests": {outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
        "rows": rows,
    }
    write(out / f"{part}.json", made)
    so_far.path.unlink(missing_ok=True)
    return made


class _SoFar:
    """What a part has measured, kept in a file until the part ends.

    `end` is the moment of `time.monotonic` from which on nothing more is measured.
    """

    def __init__(self, path: Path, head: dict[str, Any], end: float) -> None:
        self.path, self._head, self._end = path, head, end
        self._rows: list[list[Row]] = []  # by measurement
        self._next = 0
        if not path.is_file():
            return
        before: Any = read(path)
        if all(before[field] == head[field] for field in ("schema", "card", "source_hash", "part")):
            rows = iter(before["rows"])
            self._rows = [list(itertools.islice(rows, count)) for count in before["measured"]]
            print(f"{path}: {len(self._rows)} measurements of before are kept", flush=True)

    def rows_of(self, measure: Measurement) -> list[Row]:
        """The rows of the part's next measurement."""
        self._next += 1
        if self._next > len(self._rows):
            if time.monotonic() > self._end:
                raise NotEnded(f"stopped: {len(self._rows)} measurements are in {self.path}")
            self._rows.append(measure())
            measured = [len(rows) for rows in self._rows]
            rows = [*itertools.chain(*self._rows)]
            write(self.path, {**self._head, "measured": measured, "rows": rows})
        return self._rows[self._next - 1]


def merge(folder: Path, output: Path) -> Path:
    """Merge the parts in `folder` into `output`/<card>.json; the file's path.

    Parts that the file has, and `folder` has not or only from an earlier date, stay in it, each with
    the source hash it had.

    Raises
    ------
    SystemExit
        If there are no parts, if they disagree in schema or card, or if some did not run again and
        the file does not say which of its rows are theirs.
    """
    names = [name for name in PARTS if (folder / f"{name}.json").is_file()]
    parts = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    if not parts:
        raise SystemExit(f"{folder}: holds no part of {', '.join(PARTS)}")
    for field in ("schema", "card"):
        values = {part[field] for part in parts.values()}
        if len(values) > 1:
            raise SystemExit(f"{folder}: the parts disagree in {field}: {sorted(map(str, values))}")
    schema, card = (next(iter(parts.values()))[field] for field in ("schema", "card"))
    path = output / f"{slug(card)}.json"
    if path.is_file():
        kept = _parts_of(path, parts)
        parts = kept | {
            name: part
            for name, part in parts.items()
            if name not in kept or part["date"] >= kept[name]["date"]
        }
    parts = {name: parts[name] for name in PARTS if name in parts}
    newest = max(parts.values(), key=lambda part: part["date"])
    of_a_part = ("driver", "cuda", "date", "source_hash", "tests")
    merged = {
        "schema": schema,
        "card": card,
        **{field: newest[field] for field in of_a_part[:-1]},
        "tests": {
            outcome: sum(part["tests"][outcome] for part in parts.values())
            for outcome in ("passed", "failed", "skipped")
        },
        "parts": {
            name: {field: part[field] for field in of_a_part} | {"rows": len(part["rows"])}
            for name, part in parts.items()
        },
        "rows": [row for part in parts.values() for row in part["rows"]],
    }
    write(path, merged)
    return path


def _parts_of(path: Path, again: Collection[str]) -> dict[str, dict[str, Any]]:
    """The parts of a merged file, each with its rows. `again`: the parts that replace theirs."""
    merged = read(path)
    if "parts" not in merged:
        if missing := [name for name in PARTS if name not in again]:
            raise SystemExit(
                f"{path}: does not say which rows are of which part, so all parts must run again; "
                f"missing: {', '.join(missing)}"
            )
        return {}
    rows = rows_by_part(merged)
    return {name: {**part, "rows": rows[name]} for name, part in merged["parts"].items()}


def _measured(
    modules: Sequence[str], rows_of: Callable[[Measurement], list[Row]]
) -> tuple[list[Row], int]:
    """Their rows, and how many of their measurements failed; a module's `worse` finds such rows.

    A module gives rows, or measurements of which `rows_of` gets the rows.
    """
    found: list[Row] = []
    failed = 0
    for name in modules:
        module_name, _, function = name.partition(":")
        module = importlib.import_module(f"benchmarks.{module_name}")
        try:
            given = getattr(module, function or "rows")()
            rows = [row for one in given for row in (rows_of(one) if callable(one) else [one])]
        except AssertionError as error:  # of a rank that ended otherwise than it must
            print(error, file=sys.stderr)
            failed += 1
            continue
        for row in module.worse(rows) if hasattr(module, "worse") else ():
            print(f"{name}: worse than it may be: {row}", file=sys.stderr)
            failed += 1
        found += rows
    return found, failed


def _pytest(*arguments: str, seconds: float = LIMIT_SECONDS - 20) -> Counts:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--require-gpu", f"--junitxml={report}"]
        print("$", *command, *arguments, flush=True)
        # Interrupted it still reports what has run.
        limit = ["timeout", "--foreground", "--signal=INT", "--kill-after=15", str(seconds)]
        code = subprocess.run([*limit, *command, *arguments], cwd=ROOT, check=False).returncode
        stopped = code in (124, 137)  # after SIGINT alone, or SIGKILL too
        if stopped:
            print(f"stopped after {seconds:.0f} s", file=sys.stderr)
        if not report.is_file():
            return Counter(failed=1)
        (suite,) = ElementTree.parse(report).getroot()
    kinds = ("tests", "failures", "errors", "skipped")
    tests, failures, errors, skipped = (int(suite.get(kind, 0)) for kind in kinds)
    failed = failures + errors
    passed = tests - failed - skipped
    if stopped or (code != 0 and failed == 0):
        failed += 1  # a time-out, or a failure outside of any test
    return Counter(passed=passed, failed=failed, skipped=skipped)


def _shares(*arguments: str) -> list[tuple[str, ...]]:
    """A run of pytest as several that are all of it, as many as there are CPUs for."""
    count = max(1, min(4, (os.cpu_count() or 1) // 4))
    return [(*arguments, "--share", f"{number}/{count}") for number in range(count)]


def _side_by_side(runs: Sequence[tuple[str, ...]], **options: Any) -> Counts:
    with ThreadPoolExecutor(len(runs)) as pool:
        return sum(pool.map(lambda run: _pytest(*run, **options), runs), Counts())


def _tests() -> Counts:
    # Side by side: the unit tests keep the CPUs busy and leave the GPU alone; those on the GPU leave
    # most of it idle, as they wait for the host. How the wheel is packed is CI's matter: it needs
    # tools that a GPU machine may lack.
    unit = "tests/unit"
    elsewhere = (f"--ignore={path}" for path in (unit, _RANKS, _INTEROP, "tests/packaging"))
    return _side_by_side([*_shares(unit), *_shares("tests", *_ONE_GPU, *elsewhere)])


def _interop() -> Counts:
    # The host time of a call is among the first, so nothing runs beside them. The others start
    # programs of their own, whose start takes longer than their work.
    first = _pytest(_TORCH, "-m", "gpu and not multi_rank and not multi_gpu", seconds=90)
    others = (_INTEROP, f"--ignore={_TORCH}", "-m", "gpu and not endurance and not multi_gpu")
    runs = [*_shares(_TORCH, "-m", "gpu and multi_rank and not multi_gpu"), others]
    return first + _side_by_side(runs, seconds=LIMIT_SECONDS - 110)


def _endurance() -> Counts:
    # What measures the device's memory comes alone; the others wait for deadlines most of the time.
    first = _pytest("tests", "-m", "device_memory and not multi_gpu", seconds=LIMIT_SECONDS / 4)
    others = "endurance and not device_memory and not multi_gpu"
    runs = _shares("tests", f"--ignore={_SANITIZER}", "-m", others)
    return first + _side_by_side(runs, seconds=LIMIT_SECONDS * 3 / 4 - 30)


# What a part tests, and the modules that measure its rows: by `rows`, or by the function after the
# colon.
PARTS: dict[str, tuple[Callable[[], Counts], tuple[str, ...]]] = {
    "host": (Counter, ("host_cost",)),
    "tests": (_tests, ()),
    "ranks": (lambda: _pytest(_RANKS, *_ONE_GPU, *_NO_FAULTS), ()),
    "peers": (lambda: _pytest(*_PEERS, *_ONE_GPU), ()),
    "forward": (Counter, ("forward",)),
    "forward_more": (Counter, ("forward:more_rows",)),
    "backward": (Counter, ("backward",)),
    "backward_more": (Counter, ("backward:more_rows",)),
    "error": (Counter, ("error", "gradient_error")),
    "ring": (Counter, ("ring",)),
    "runtime": (Counter, ("balance", "overlap", "memory")),
    "faults": (lambda: _pytest(_FAULTS, *_ONE_GPU), ("faults",)),
    "sanitize": (lambda: _pytest(_SANITIZER), ()),
    "interop": (_interop, ()),
    "endurance": (_endurance, ()),
}


@click.command()
@click.option("--part", type=click.Choice([*PARTS]))
@click.option("--out", type=Path, metavar="DIR", help="Where <part>.json goes.")
@click.option("--seconds", type=float, default=math.inf, help="After these no call is begun.")
@click.option("--merge", "parts", type=Path, metavar="DIR", help="Merge the parts in DIR.")
@click.option("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
def main(
    part: str | None, out: Path | None, seconds: float, parts: Path | None, output: Path
) -> None:
    """Exit code 0 if the part ran and nothing in it failed, 1 if something did, 2 if refused, 3 if
    the seconds were over first."""
    if parts is not None and part is None:
        print(merge(parts, output))
        return
    if parts is not None or part is None or out is None:
        raise click.UsageError("must be --part with --out, or --merge")
    try:
        evidence = run_part(part, out, seconds)
    except SourceMismatch as error:
        raise click.UsageError(f"refused: {error}") from None
    except NotEnded as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    sys.exit(1 if evidence["tests"]["failed"] else 0)


if __name__ == "__main__":
    main()
