"""Running all parts of the evidence: each once, where and when it may."""

import threading
from pathlib import Path

import pytest

from benchmarks import all_parts
from benchmarks.evidence import PARTS

# They find right from wrong, and measure neither time nor the device's memory.
_NEIGHBOURS = {"tests", "peers", "ranks", "sanitize"}


class _Machine:
    """Stands in for the parts: notes what runs beside what, and lets the timed ones last."""

    def __init__(self, failing=()):
        self.lock, self.running, self.failing = threading.Lock(), [], failing
        self.beside, self.gpu, self.order = {}, {}, []

    def start(self, part, gpu):
        with self.lock:
            self.order.append(part)
            self.gpu[part] = gpu
            self.beside[part] = set(self.running)
            for other in self.running:
                self.beside[other].add(part)
            self.running.append(part)
        threading.Event().wait(0.05)
        with self.lock:
            self.running.remove(part)
        return int(part in self.failing)


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_gpu_runs_one_part_after_the_other(gpus):
    machine = _Machine(failing={"faults"})
    codes = all_parts.run_all(gpus, machine.start)
    assert sorted(machine.order) == sorted(PARTS) and not any(machine.beside.values())
    assert machine.order[0] == "host" and set(machine.gpu.values()) == {0}
    assert codes == {part: int(part == "faults") for part in PARTS}


@pytest.mark.parametrize(("gpus", "used"), [(2, 2), (3, 2), (4, 4), (8, 4)])
def test_several_gpus_run_them_side_by_side(gpus, used):
    machine = _Machine(failing={"endurance", "host"})
    codes = all_parts.run_all(gpus, machine.start)
    assert sorted(machine.order) == sorted(PARTS)
    assert codes == {part: int(part in ("endurance", "host")) for part in PARTS}
    assert set(machine.gpu.values()) == set(range(used))
    # What measures time or memory has its GPU to itself; the host's microseconds have the host.
    for part, others in machine.beside.items():
        neighbours = {other for other in others if machine.gpu[other] == machine.gpu[part]}
        assert not neighbours or {part, *neighbours} <= _NEIGHBOURS
    assert not machine.beside["host"]


def test_some_parts_alone():
    machine = _Machine()
    codes = all_parts.run_all(4, machine.start, ["error", "sanitize"])
    assert codes == {"error": 0, "sanitize": 0}


@pytest.mark.parametrize("failing", ["host", "tests"])
def test_a_part_that_cannot_start_is_not_swallowed(failing):
    def start(part, gpu):
        if part == failing:
            raise OSError("no such program")
        return 0

    with pytest.raises(OSError, match="no such program"):
        all_parts.run_all(4, start)


def test_a_part_gets_its_gpu_its_log_and_its_folder(tmp_path, monkeypatch):
    seen = {}

    def run(command, *, env, stdout, **_):
        seen[command[4]] = env["CUDA_VISIBLE_DEVICES"]
        folder = Path(command[6])
        folder.mkdir()
        (folder / f"{command[4]}.json").write_text("{}")
        stdout.write("said")
        return all_parts.subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(all_parts.subprocess, "run", run)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert all_parts._start(tmp_path, "ring", 1) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,2")
    assert all_parts._start(tmp_path, "faults", 1) == 3
    assert seen == {"ring": "1", "faults": "2"}
    assert (tmp_path / "ring.json").is_file() and (tmp_path / "ring.txt").read_text() == "said"
