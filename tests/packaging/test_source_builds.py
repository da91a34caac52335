"""The builds without CUDA that install.md gives, in a copy of the tree: the editable one rebuilds on
import, the other says what it is and serves the host."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from helpers.pages import ROOT, code_blocks, commands

NEEDED = ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml")
FOLDERS = ("baracuda_kernels", "cmake", "src")

# Starts the compilers. How a build is made is tested here, not how fast it is. Fortified code must be
# optimised.
LAUNCHER = """#!/bin/sh
exec "$@" -O0 -U_FORTIFY_SOURCE
"""

SCRIPT = """
import numpy as np
import baracuda_kernels as bk
from baracuda_kernels._core import _info
q = np.ones((1, 2, 8, 16), np.float32)
y, _ = bk.run_local_ring(q, q, q, 2)
assert np.allclose(y, 1)
print(getattr(_info, "added", lambda: "nothing")())
"""


HOST_ONLY = """
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources."""
    folder = tmp_path_factory.mktemp("sources")
    for name in NEEDED:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory):
    """Runs a command in the sources' folder, in an environment of its own. No nvcc is to be found
    there, so that none is used by accident."""
    scripts = tmp_path_factory.mktemp("environment") / "venv" / "bin"
    subprocess.run([sys.executable, "-m", "venv", scripts.parent], check=True)
    path = [str(scripts), *os.environ["PATH"].split(os.pathsep)]
    without_nvcc = [folder for folder in path if not (pathlib.Path(folder) / "nvcc").exists()]
    environment = {**os.environ, "PATH": os.pathsep.join(without_nvcc)}
    environment.pop("CUDACXX", None)
    launcher = tmp_path_factory.mktemp("launcher") / "unoptimised"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    environment |= {f"CMAKE_{x}_COMPILER_LAUNCHER": str(launcher) for x in ("C", "CXX")}
    environment |= _without_cython()

    def run(*command, **variables):
        done = subprocess.run(
            [scripts / command[0], *command[1:]],
            cwd=tree, env={**environment, **variables}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    return run


def _without_cython():
    """Variables by which what Cython made in the tree's own build is taken, if it is the newer."""
    sources = ROOT / "src" / "pyx"
    headers = (ROOT / "src" / "cuda" / "include").rglob("*.h")
    inputs = [
        *sources.rglob("*.pyx"),
        *sources.rglob("*.pxd"),
        *headers,
        ROOT / "cmake" / "c_abi.py",
    ]
    newest = max(path.stat().st_mtime for path in inputs)
    modules = [path.relative_to(sources).with_suffix(".c") for path in sources.rglob("*.pyx")]
    for made in (ROOT / "build").glob("*/src/pyx"):
        times = [(made / x).stat().st_mtime for x in modules if (made / x).exists()]
        if len(times) == len(modules) and min(times) > newest:
            return {
                "PYTHONPATH": str(pathlib.Path(__file__).parent / "cython_made_before"),
                "BARACUDA_TEST_MADE": str(made),
                "BARACUDA_TEST_SOURCES": str(sources),
            }
    return {"PYTHONPATH": ""}


@pytest.mark.timeout(900)
def test_it_rebuilds_on_import(tree, run):
    """The commands of install.md; without CUDA, to be quick."""
    *_, block = code_blocks("docs/install.md", "sh")
    for command in commands(block):
        run(*command, SKBUILD_CMAKE_DEFINE="BARACUDA_CUDA=OFF")
    assert run("python", "-c", SCRIPT) == "nothing\n"
    with (tree / "src" / "pyx" / "baracuda_kernels" / "_core" / "_info.pyx").open("a") as module:
        module.write('\n\ndef added():\n    return "a function"\n')
    assert run("python", "-c", SCRIPT) == "a function\n"


@pytest.mark.timeout(900)
def test_a_build_without_cuda(tree, run, tmp_path):
    """The command of install.md, to a place of its own; in the build folder of the editable install,
    so that little is compiled twice."""
    *_, editable = code_blocks("docs/install.md", "sh")
    set_up, install = commands(editable)
    (folder,) = (word for word in install if "build-dir" in word)
    run(*set_up)
    run("pip", "uninstall", "-q", "-y", "baracuda-kernels")  # an editable one outranks any other
    (command,) = commands(code_blocks("docs/install.md", "sh")[1])
    assert command[:2] == ["pip", "install"] and "-Ccmake.define.BARACUDA_CUDA=OFF" in command
    site = tmp_path / "site"
    run(*command, "-q", "--no-build-isolation", "--no-deps", "--target", site, folder)
    info = json.loads(run("python", "-c", HOST_ONLY, site))
    assert info["cuda_built"] is False and info["architectures"] == [] and info["nvcc"] == ""
    shown = run("python", "-P", "-m", "baracuda_kernels", "info", PYTHONPATH=str(site))
    assert "host" in shown.lower() and "cuda" in shown.lower()


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
