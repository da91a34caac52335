"""The example for torchrun, started as a user starts it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pages import run_to_its_end

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank]

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "torchrun_ring.py"


def test_torchrun_ring(torch, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = run_to_its_end(
        [*command, "--nproc-per-node=1", str(EXAMPLE), "--rows", "512"],
        cwd=tmp_path,
        environment=os.environ,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (error,) = re.findall(r"rank 0 of 1: \w+, rms error (\S+)", done.stdout)
    assert float(error) < 1e-2


def test_cuda_graph(torch, tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE.with_name("cuda_graph.py"))],
        cwd=tmp_path,
        capture_output=True, check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "replayed and eager give the same bits: True\n"
