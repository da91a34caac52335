"""The whole repository passes the linter with the settings of pyproject.toml."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="capability: ruff is installed")
def test_ruff_finds_nothing():
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", ROOT],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
