"""What is started by its path or name imports as its starter starts it: in a process of its own, with nothing
of the starter's on the path. And what pytest starts, on a machine without a GPU too."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
BENCHMARKS = [p for p in (ROOT / "benchmarks").rglob("*.py") if not p.name.startswith("__")]
PROGRAM_BLOCK = 'if __name__ == "__main__":'
# It needs its argument to import, and its own test runs it in any environment.
NATIVE = TESTS / "native" / "check_host.py"
# Helpers that tests start by their name.
AS_MODULES = {
    TESTS / "helpers" / f"{name}.py"
    for path in TESTS.rglob("test_*.py")
    for name in re.findall(r'"-m", "helpers\.(\w+)"', path.read_text())
}
# Programs: ranks, which helpers.rank_pool starts; cases of JAX; makers of pages; what says so of itself.
BY_PATH = sorted([
    *(p for folder in (TESTS, ROOT / "docs", ROOT / "cmake") for p in folder.rglob("*.py")
      if p not in {NATIVE, *AS_MODULES}
      and re.search(f"^{re.escape(PROGRAM_BLOCK)}", p.read_text(), re.MULTILINE)),
    *(p for p in BENCHMARKS if re.search(f"python3? benchmarks/{p.name}", p.read_text())),
])  # fmt: skip
BY_NAME = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in BENCHMARKS
    if path not in BY_PATH
)
# Tests import these with tests/ on the path.
HELPERS = sorted(f"helpers.{p.stem}" for p in (TESTS / "helpers").glob("[!_]*.py"))
# Slow, and the same for all.
FRAMEWORK = """
import importlib
for name in ("torch.distributed.tensor", "torch.nn.attention.bias", "torch._dynamo", "jax", "pytest",
             "transformers.trainer", "matplotlib.pyplot", "baracuda_kernels.interop.torch"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass
"""
# Imports all arguments, each in a child of its own so that none finds what another put on the path;
# prints what fails. What comes with a package that is not installed is no failure. A program is run
# up to its last statement, under the name that it has when it is started. A folder is where what
# follows it is started.
PROGRAM = """
import ast, importlib, importlib.util, os, sys, traceback, types

def absent(error):
    root = (error.name or "").partition(".")[0]
    return root in {"jax", "cupy", "triton", "ring_flash_attn", "dew_flash_attn", "matplotlib",
                    "transformers", "accelerate", "mpi4py", "sphinx"}

def start(path):
    with open(path) as file:
        tree = ast.parse(file.read(), path)
    last = tree.body.pop()
    assert isinstance(last, ast.If) and "__main__" in ast.unparse(last.test), "ends otherwise"
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__file__ = path
    sys.path[0] = os.path.dirname(path)
    exec(compile(tree, path, "exec"), vars(module))

for name in sys.argv[1:]:
    if os.path.isdir(name):
        os.chdir(name)
        continue
    child = os.fork()
    if child == 0:
        try:
            if name.endswith(".py"):
                start(name)
            else:
                importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not absent(error):
                print(name, traceback.format_exc(), flush=True)
        except BaseException:
            print(name, traceback.format_exc(), flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


def failures(names, ahead=FRAMEWORK):
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = [x for x in path if x and ROOT not in (Path(x).resolve(), Path(x).resolve().parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(installed)}
    result = subprocess.run(
        [sys.executable, "-c", ahead + PROGRAM, *map(str, names)], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.framework("torch")
def test_what_is_started_imports():
    paths = {path.name for path in BY_PATH}
    assert {"worker.py", "peer_worker.py", "torch_worker.py", "compare_builds.py"} <= paths
    assert {"jax_gpu.py", "jax_gradients.py", "ring_coverage.py", "test_memory_host.py"} <= paths
    assert {"benchmarks.evidence", "benchmarks.overlap", "benchmarks.memory"} <= set(BY_NAME)
    assert {"helpers.cuda_ring", "helpers.jax_gradients", "helpers.rank_tasks"} <= set(HELPERS)
    assert failures([*BY_PATH, *BY_NAME, TESTS, *HELPERS]) == ""


@pytest.mark.parametrize(
    "path",
    [*BY_PATH, *(TESTS / "interop").glob("*_tasks.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_program_has_no_relative_import(path):
    """Neither has what a worker imports from the folder beside it: it has no package."""
    nodes = ast.walk(ast.parse(path.read_text()))
    assert [x.lineno for x in nodes if isinstance(x, ast.ImportFrom) and x.level] == []


@pytest.mark.framework("torch")
@pytest.mark.parametrize("folder", ["gpu", "multi_rank"])
def test_what_pytest_starts_on_a_gpu_imports(folder):
    """In an environment of its own: other tests have put more on this one's path."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", TESTS / folder],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
    collected = {line.partition("::")[0] for line in result.stdout.splitlines() if "::" in line}
    assert collected == {f"tests/{folder}/{p.name}" for p in (TESTS / folder).glob("test_*.py")}


@pytest.mark.framework("jax")
@pytest.mark.parametrize(
    "command", [("jax_gradients.py", "whole", "f32", "40"), ("jax_gpu.py", "whole", "f32", "simt", "40")]
)
def test_the_cases_of_jax_start(tmp_path, command):
    program, *arguments = command
    result = subprocess.run(
        [sys.executable, TESTS / "helpers" / program, *arguments], cwd=tmp_path, timeout=120,
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "JAX has no CUDA device here" in result.stdout


def test_the_page_of_what_context_parallel_catches_is_written(tmp_path):
    for folder in ("tests/helpers", "tests/interop"):
        (tmp_path / folder).mkdir(parents=True)
    for path in (TESTS / "helpers").glob("*.py"):
        shutil.copy(path, tmp_path / "tests" / "helpers")
    shutil.copy(TESTS / "interop" / "ring_coverage.json", tmp_path / "tests" / "interop")
    (tmp_path / "docs").mkdir()
    program = tmp_path / "tests" / "helpers" / "ring_coverage.py"
    result = subprocess.run(
        [sys.executable, program, "--page"], cwd=tmp_path, timeout=120, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    page = Path("docs", "context-parallel.md")
    assert (tmp_path / page).read_text() == (ROOT / page).read_text()


def test_a_worker_that_leans_on_its_starters_path_is_found(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(f"import helpers.rank_tasks\n{PROGRAM_BLOCK}\n    pass\n")
    assert "No module named 'helpers'" in failures([worker], "")


def test_a_relative_import_in_a_program_is_found(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"from .gradients import draw\n{PROGRAM_BLOCK}\n    pass\n")
    assert "attempted relative import with no known parent package" in failures([program], "")
