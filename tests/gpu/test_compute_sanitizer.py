"""Every GPU kernel under compute-sanitizer: nothing out of bounds, no race, no barrier misused."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.pages import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.endurance]

GRIDS = {
    "memcheck": [],
    "racecheck": ["--one-each", "--no-handed-over"],
    "synccheck": ["--one-each"],
}


@pytest.mark.parametrize("tool", GRIDS)
def test_nothing_is_found(tool, request):
    folders = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    sanitizer = shutil.which("compute-sanitizer", path=folders)
    if sanitizer is None:
        lacks = pytest.fail if request.config.getoption("--require-gpu") else pytest.skip
        lacks("capability: the CUDA toolkit's compute-sanitizer")
    command = [
        *(sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-name", "kns=baracuda"),
        *(sys.executable, "-m", "helpers.sanitize_grid", *GRIDS[tool]),
    ]
    # Every tensor an allocation of its own, or memcheck cannot see its end.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run(command, cwd=ROOT / "tests", env=environment, timeout=150, check=False,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
