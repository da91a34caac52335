"""-DBARACUDA_CUDA=OFF: builds without nvcc, says so, and serves the host."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from helpers.pages import code_blocks, commands

ROOT = pathlib.Path(__file__).parent.parent.parent

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import baracuda_kernels as bk
assert bk.__path__[0].startswith(sys.argv[1]), bk.__path__
q = np.ones((1, 2, 8, 16), np.float32)
y, _ = bk.run_local_ring(q, q, q, 2)
assert np.allclose(y, 1)
descriptor = bk.RingAttentionDescriptor(1, 2, 8, 8, 64, element="BF16")
explanation = bk.registry.explain(descriptor, "sm_90")
assert explanation.selected is None
assert all(c.reason for c in explanation.candidates)
for call in (lambda: bk.LocalCommunicator.ring(2, device=0), lambda: bk.Stream(0)):
    try:
        call()
    except (bk.UnsupportedError, bk.InvalidProblemError) as error:
        assert "CUDA" in str(error)
    else:
        raise AssertionError("CUDA was offered by a build without it")
print(json.dumps(bk._build_info()))
"""


@pytest.mark.timeout(600)
def test_a_build_without_cuda(tmp_path):
    # No nvcc to be found, so that it cannot be used by accident.
    path = os.pathsep.join(
        folder for folder in os.environ["PATH"].split(os.pathsep)
        if not (pathlib.Path(folder) / "nvcc").exists()
    )
    environment = {**os.environ, "PATH": path}
    environment.pop("CUDACXX", None)
    # The command of install.md, to a place of its own.
    (command,) = commands(code_blocks("docs/install.md", "sh")[1])
    assert command[:2] == ["pip", "install"] and "-Ccmake.define.BARACUDA_CUDA=OFF" in command
    subprocess.run(
        [sys.executable, "-m", *command, "-q", "--no-deps", "--target", tmp_path / "site",
         f"-Cbuild-dir={tmp_path / 'build'}"],
        check=True, env=environment, cwd=ROOT,
    )
    result = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "site"], check=True,
                            capture_output=True, text=True, cwd=tmp_path)
    info = json.loads(result.stdout)
    assert info["cuda_built"] is False and info["architectures"] == [] and info["nvcc"] == ""
    shown = subprocess.run(
        [sys.executable, "-m", "baracuda_kernels", "info"], check=True, capture_output=True,
        text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    ).stdout
    assert "host" in shown.lower() and "cuda" in shown.lower()
