"""The editable install of the documents, in a copy of the tree: it rebuilds on import."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.pages import ROOT, code_blocks, commands

NEEDED = ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml")
FOLDERS = ("baracuda_kernels", "cmake", "src")

SCRIPT = """
import numpy as np
import baracuda_kernels as bk
from baracuda_kernels._core import _info
q = np.ones((1, 2, 8, 16), np.float32)
y, _ = bk.run_local_ring(q, q, q, 2)
assert np.allclose(y, 1)
print(getattr(_info, "added", lambda: "nothing")())
"""


@pytest.mark.timeout(900)
def test_it_rebuilds_on_import(tmp_path):
    """The commands of install.md, by an environment of their own; without CUDA, to be quick."""
    *_, block = code_blocks("docs/install.md", "sh")
    tree, scripts = tmp_path / "tree", tmp_path / "venv" / "bin"
    tree.mkdir()
    for name in NEEDED:
        shutil.copy(ROOT / name, tree)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name)
    subprocess.run([sys.executable, "-m", "venv", scripts.parent], check=True)
    path = os.pathsep.join([str(scripts), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "SKBUILD_CMAKE_DEFINE": "BARACUDA_CUDA=OFF"}
    environment.pop("PYTHONPATH", None)

    def run(*command):
        done = subprocess.run(
            [scripts / command[0], *command[1:]],
            cwd=tree, env=environment, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    for command in commands(block):
        run(*command)
    assert run("python", "-c", SCRIPT) == "nothing\n"
    with (tree / "src" / "pyx" / "baracuda_kernels" / "_core" / "_info.pyx").open("a") as module:
        module.write('\n\ndef added():\n    return "a function"\n')
    assert run("python", "-c", SCRIPT) == "a function\n"


def test_the_developer_guide_sets_up_the_same():
    """The commands of docs/install.md, in a new environment and with what the tests need."""
    *_, block = code_blocks("docs/install.md", "sh")
    venv, *set_up, tests = commands(code_blocks("docs/developer-guide.md", "sh")[0])
    assert venv == ["python3", "-m", "venv", ".venv"]
    expected = [[".venv/bin/pip", *words[1:]] for words in commands(block)]
    assert expected[-1][-2:] == ["-e", "."]
    expected[-1][-1] = ".[test]"
    assert set_up == expected
    assert tests == [".venv/bin/python", "-m", "pytest", "-q"]
