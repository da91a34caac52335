"""The helpers of these tests."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_nothing_is_left_in_the_temporary_directory(tmp_path):
    script = "from helpers import ring_abi; print(ring_abi.build_helper('flush_to_zero.cpp'))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert result.stdout.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def collected(*arguments):
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         TESTS / "unit" / "test_walls.py", "-k", "named", *arguments],
        capture_output=True, text=True, check=False, cwd=TESTS.parent,
    )  # fmt: skip
    return result, [line for line in result.stdout.splitlines() if "::" in line]


def test_shares_are_all_tests_and_each_once():
    _, everything = collected()
    shares = [collected("--share", f"{i}/3")[1] for i in range(3)]
    assert sorted(x for share in shares for x in share) == sorted(everything)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    result, _ = collected("--share", "3/3")
    assert result.returncode != 0 and "invalid share value: '3/3'" in result.stderr
