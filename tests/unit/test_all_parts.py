"""Running all parts of the evidence: each once, where and when it may."""

import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import all_parts
from benchmarks.evidence import PARTS


@pytest.mark.parametrize("gpus, used", [(0, 1), (1, 1), (2, 2), (3, 3), (8, 4)])
def test_every_part_runs_once_alone_on_its_gpu(gpus, used):
    lock, running, where, beside_host = threading.Lock(), [], {}, []

    def start(part, gpu):
        with lock:
            assert part not in where and gpu not in [where[other] for other in running]
            where[part] = gpu
            running.append(part)
        threading.Event().wait(0.05)
        with lock:
            beside_host.extend(running if part == "host" else [])
            running.remove(part)
        return int(part in ("endurance", "host"))

    codes = all_parts.run_all(gpus, start)
    assert codes == {part: int(part in ("endurance", "host")) for part in PARTS}
    assert set(where.values()) == set(range(used)) and beside_host == ["host"]
    where.clear()
    assert all_parts.run_all(gpus, start, ["error", "sanitize"]) == {"error": 0, "sanitize": 0}


def test_a_part_gets_its_gpu(tmp_path, monkeypatch):
    seen = []

    def run(command, *, env, **_):
        seen.append((command[4], env["CUDA_VISIBLE_DEVICES"]))
        return all_parts.subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(all_parts.subprocess, "run", run)
    for visible, part in (("", "ring"), ("5,2", "faults")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert all_parts._start(tmp_path, part, 1) == 3
    assert seen == [("ring", "1"), ("faults", "2")]


@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_what_takes_all_gpus_comes_first(tmp_path, monkeypatch, gpus):
    """On one GPU there is none of it."""
    ran = []

    def run(command, **_):
        ran.append(command)
        return all_parts.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(all_parts.subprocess, "run", run)
    monkeypatch.setattr(all_parts._info, "devices", lambda: [None] * gpus)
    monkeypatch.setattr(all_parts, "merge", lambda out, output: output)
    arguments = ["--out", str(tmp_path), "--part", "error", "--part", "scaling", "-o", "results"]
    assert CliRunner().invoke(all_parts.main, arguments).exit_code == 0
    assert ran[-1][2:5] == ["benchmarks.evidence", "--part", "error"]
    found = all_parts.across(gpus, Path("results"))
    assert ran[:-1] == ([found["scaling"]] if gpus > 1 else [])
    merged = []
    monkeypatch.setattr(all_parts, "merge", lambda *given: merged.append(given))
    alone = ["--out", str(tmp_path), "--part", "training", "-o", "results"]
    assert CliRunner().invoke(all_parts.main, alone).exit_code == (0 if gpus > 1 else 1)
    assert not merged
    assert ("--require-gpu" in found["several"]) == (gpus >= 4)


def test_an_unknown_part_is_refused(tmp_path):
    result = CliRunner().invoke(all_parts.main, ["--out", str(tmp_path), "--part", "eror"])
    assert result.exit_code == 2 and "got eror, must be of several, scaling" in result.output
