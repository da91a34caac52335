"""The scripts that hold two builds against each other: the same bits, the same speed."""

import contextlib
import importlib
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def scripts():
    """bits and compare_builds, which stand alone: as they lie beside one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("bits"), importlib.import_module("compare_builds")


def test_a_copy_of_the_script_hashes_the_same_bits_twice(tmp_path):
    shutil.copy(ROOT / "benchmarks" / "bits.py", tmp_path)
    command = [sys.executable, "-W", "error", "bits.py"]
    for name in ("one.json", "two.json"):
        subprocess.run([*command, "--device", "host", "-o", name], cwd=tmp_path, check=True)
    compare = [*command, "--compare", "one.json", "two.json"]
    same = subprocess.run(compare, cwd=tmp_path, capture_output=True, check=False, text=True)
    hashes = json.loads((tmp_path / "two.json").read_text())
    count = len(hashes)
    assert same.returncode == 0 and f"{count} of {count} cases equal, 0 of them" in same.stdout
    assert count >= 300 and len(set(hashes.values())) == count, "two cases have one answer"
    changed, gone, *_ = hashes
    hashes[changed] = "0" * 64
    del hashes[gone]
    (tmp_path / "two.json").write_text(json.dumps(hashes))
    other = subprocess.run(compare, cwd=tmp_path, capture_output=True, check=False, text=True)
    assert other.returncode == 1 and f"{count - 2} of {count} cases equal" in other.stdout
    assert changed in other.stdout and f"{gone}: " in other.stdout and "missing" in other.stdout


@pytest.mark.parametrize(
    "device, families", [("host", ["host"]), ("cuda", ["simt", "sm80", "sm90a"])]
)
def test_what_is_hashed(scripts, device, families):
    bits, _ = scripts
    cases = list(dict.fromkeys(getattr(bits, f"{device}_cases")()))
    assert len(cases) >= 300 and len({case.name for case in cases}) == len(cases)
    for family in families:
        own = [case for case in cases if case.family == family]
        assert {case.op for case in own} == {"flash", "ring", "steps"}
        rings = {(c.ranks, c.layout, c.causal, c.form) for c in own if c.op == "ring"}
        every = (range(1, 9), bits.LAYOUTS, (False, True), ("staged", "dense"))
        assert rings >= set(itertools.product(*every))
        assert {c.dtype for c in own} >= {"bf16", "f16"}
        assert any(c.heads > c.kv_heads > 1 for c in own) and any(c.kv_heads == 1 for c in own)
        assert {c.odd.split(" ")[0] for c in own} == {"", "nan", "inf", "-inf"}
        assert any(c.keys % 2 for c in own) and any(c.rows != c.keys for c in own)
        if device == "cuda":
            assert min(c.keys for c in own) < 1536 < max(c.keys for c in own)


def test_the_bound_of_the_median(scripts):
    """By hand: of 9 values the median lies below the 8th with 1 - 10/512, the 7th 1 - 46/512."""
    _, compare_builds = scripts
    assert compare_builds.upper_bound([9, 1, 2, 8, 3, 7, 4, 6, 5]) == 8
    assert compare_builds.upper_bound(list(range(1, 16))) == 12
    assert compare_builds.upper_bound(list(range(1, 22))) == 15
    assert compare_builds.upper_bound([1.0] * 9) == 1.0


def test_calls_are_timed_in_processes_of_their_own(scripts, tmp_path):
    _, compare_builds = scripts
    cases = compare_builds.cases("host")
    assert {case.what for case in cases} == {"import", "host time", "kernel"}
    assert len({case.name for case in cases}) == len(cases)
    with contextlib.closing(compare_builds.Build(sys.executable, str(tmp_path))) as build:
        for case in cases:
            assert 1e-7 < build.seconds(case) < 10, case.name
        with pytest.raises(RuntimeError, match="InvalidProblemError|UnsupportedError"):
            build.seconds(cases[-1]._replace(case=cases[-1].case._replace(heads=3)))
        assert build.seconds(cases[-1]) > 0


def test_a_slower_build_is_told(scripts, monkeypatch, capsys):
    _, compare_builds = scripts

    class Fake:
        def __init__(self, where, folder):
            self.where = where

        def seconds(self, case):
            return {"old": 1.0, "new": 1.0 if case.what == "import" else 1.2}[self.where]

        def close(self):
            pass

    monkeypatch.setattr(compare_builds, "Build", Fake)
    for new, only, code in (("new", "host time", 1), ("new", "import", 0), ("old", "", 0)):
        arguments = ["compare_builds.py", "--device", "host", "--only", only, "old", new]
        monkeypatch.setattr(sys, "argv", arguments)
        assert compare_builds.main() == code
        assert ("SLOWER" in capsys.readouterr().out) == bool(code)


def test_a_folder_that_is_not_imported_is_refused(scripts, tmp_path):
    """It holds no package: this Python's own would be timed in its name."""
    _, compare_builds = scripts
    with pytest.raises(SystemExit, match="imports .* instead"):
        compare_builds.Build(str(tmp_path), str(tmp_path))
