"""`--record-bits`: the same build gives the same file, and another bit another one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.record_bits import RecordBits

from baracuda_kernels import testing

ROOT = Path(__file__).parent.parent.parent
TESTS = "test_local_ring_host.py::test_16_bit", "test_backward_host.py::test_against_float64"


def test_two_runs_of_one_build_give_the_same_file(tmp_path):
    """By random examples, too, and by several processes."""
    # Its plugin warns of workers, and warnings are errors.
    workers = ["-n", "2", "-p", "no:benchmark"] if importlib.util.find_spec("xdist") else []
    for name, more in (("one", []), ("two", workers)):
        command = [sys.executable, "-m", "pytest", "-q", "--record-bits", tmp_path / name, *more]
        command += [f"tests/unit/{test}" for test in TESTS]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = (tmp_path / "one").read_text()
    assert found == (tmp_path / "two").read_text()
    answers = [json.loads(line)[4] for line in found.splitlines()]
    assert len(answers) > 50 and {frozenset(x) for x in answers} == {
        frozenset({"y", "lse"}), frozenset({"dq", "dk", "dv"})}  # fmt: skip


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """What is recorded of the checks that a call makes."""
    for check in ("assert_close", "assert_gradients"):
        monkeypatch.setattr(testing, check, getattr(testing, check))  # restored after the test
    recorder = RecordBits(tmp_path / "bits")

    def of(check, *given):
        recorder._found = []
        getattr(testing, check)(*given)
        return recorder._found

    return of


def test_another_bit_is_another_hash(recorded):
    exact = np.ones((1, 1, 2, 2))
    y = exact.astype(np.float32)
    first, second, other = (
        recorded("assert_close", "host", "f32", x, exact) for x in (y, y.copy(), np.nextafter(y, 2))
    )
    assert first == second and first[0][2].keys() == other[0][2].keys() == {"y"} and first != other


@pytest.mark.parametrize("family", ["sm80", "sm80-deterministic", "simt"])
def test_sums_in_any_order_are_named_as_such(recorded, family):
    gradients = [np.ones((1, 1, 2, 2))] * 3
    ((_, _, found),) = recorded("assert_gradients", family, "f16", gradients, gradients)
    assert found == "varies" if family == "sm80" else found.keys() == {"dq", "dk", "dv"}
