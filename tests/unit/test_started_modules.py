"""What a part of the evidence, or a ring of processes, starts by its path or name imports as it starts it:
in a process of its own, with nothing of the starter's on the path."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = [p for p in (ROOT / "benchmarks").rglob("*.py") if not p.name.startswith("__")]
# One rank each, which helpers.rank_pool starts by its path; and what says so of itself.
BY_PATH = sorted([
    *(ROOT / "tests").rglob("*worker.py"),
    *(p for p in BENCHMARKS if re.search(f"python3? benchmarks/{p.name}", p.read_text())),
])  # fmt: skip
BY_NAME = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in BENCHMARKS
    if path not in BY_PATH
)
# Slow, and the same for all.
FRAMEWORK = "import numpy, torch.distributed.tensor, torch.nn.attention.bias"
# Imports all arguments, each in a child of its own so that none finds what another put on the path;
# prints what fails. What comes with a package that is not installed is no failure.
PROGRAM = """
import importlib, importlib.util, os, runpy, sys, traceback

def absent(error):
    root = (error.name or "").partition(".")[0]
    return root in {"jax", "cupy", "triton", "ring_flash_attn", "dew_flash_attn", "matplotlib"}

for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            if name.endswith(".py"):
                sys.path[0] = os.path.dirname(name)
                runpy.run_path(name, run_name="started")
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
def test_what_is_started_by_its_path_imports():
    names = {path.name for path in BY_PATH}
    assert {"worker.py", "peer_worker.py", "torch_worker.py", "compare_builds.py"} <= names
    assert failures(BY_PATH) == ""


@pytest.mark.framework("torch")
def test_what_is_started_by_its_name_imports():
    assert {"benchmarks.evidence", "benchmarks.overlap", "benchmarks.memory"} <= set(BY_NAME)
    assert failures(BY_NAME) == ""


def test_a_worker_that_leans_on_its_starters_path_is_found(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("import helpers.rank_tasks\n")
    assert "No module named 'helpers'" in failures([worker], "")
