"""Runs the communicator cases in processes whose NCCL is the fake one."""

import os
import pathlib
import subprocess
import sys

from helpers.ring_abi import build_helper

TESTS = pathlib.Path(__file__).parent.parent


def test_communicators_over_a_fake_nccl():
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         TESTS / "helpers" / "communicator_cases.py",
         TESTS / "helpers" / "refusal_cases.py",
         TESTS / "helpers" / "odd_rank_cases.py"],
        capture_output=True, check=False, text=True, cwd=TESTS.parent, timeout=120,
        env={**os.environ, "BARACUDA_NCCL_LIBRARY": build_helper("fake_nccl.cpp")},
    )
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout + result.stderr
