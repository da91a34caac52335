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
