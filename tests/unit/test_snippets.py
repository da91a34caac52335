"""Every block of code in the README and the pages runs in a test; some of them here."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib

import ml_dtypes
import pytest
from helpers.pages import ROOT, blocks, code_blocks, commands, run_program
from safetensors.numpy import load_file

from baracuda_kernels.reference import attention_backward

PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))

# Nothing to run: trees of files, other libraries' calls, and what Sphinx makes its menu and its
# reference of, or shows of other files.
SHOWN = {"text", "{toctree}", "{eval-rst}", "{include}", "{literalinclude}", "{csv-table}"}

# The tests of each language's blocks in their order; one alone runs all of the page as a program.
RUN_BY = {
    "docs/architecture.md": {"python": "unit/test_snippets.py::test_the_gradients_as_written"},
    "README.md": {
        "sh": [
            "unit/test_snippets.py::test_the_first_command",
            "unit/test_snippets.py::test_ci_runs_the_readmes_test_command",
        ],
        "python": [
            "unit/test_snippets.py::test_the_readmes_whole_arrays",
            "interop/test_torch_docs.py::test_the_readmes_call",
            "interop/test_torch_docs.py::test_the_readmes_ring",
        ],
    },
    "docs/coming-from.md": {
        "python": "interop/test_torch_docs.py::test_the_page_for_those_who_come_from_elsewhere"
    },
    "docs/cuda-core.md": {"python": "interop/test_gpu.py::test_the_cuda_core_page_runs_as_written"},
    "docs/cupy.md": {"python": "interop/test_gpu.py::test_the_cupy_page_runs_as_written"},
    "docs/developer-guide.md": {
        "sh": [
            "packaging/test_source_builds.py::test_the_developer_guide_sets_up_the_same",
            "unit/test_evidence.py::test_the_documented_commands",
            "unit/test_evidence.py::test_the_documented_commands",
            "unit/test_evidence.py::test_a_part_takes_one_gpu",
            "interop/test_scaling_contenders.py::test_the_documented_commands",
        ],
        "python": ["unit/test_snippets.py::test_one_register_call"],
        "toml": ["unit/test_snippets.py::test_the_entry_point_of_another_package"],
    },
    "docs/index.md": {"python": "unit/test_snippets.py::test_the_first_page_runs_as_written"},
    "docs/install.md": {
        "sh": [
            "unit/test_snippets.py::test_the_first_command",
            "packaging/test_source_builds.py::test_a_build_without_cuda",
            "packaging/test_source_builds.py::test_it_rebuilds_on_import",
        ],
    },
    "docs/jax.md": {"python": "interop/test_jax.py::test_the_page_runs_as_written"},
    "docs/mpi.md": {
        "python": "interop/test_mpi.py::test_the_page_runs_as_written",
        "sh": "interop/test_mpi.py::test_the_commands_on_the_page",
    },
    "docs/pytorch.md": {"python": "interop/test_torch_docs.py::test_the_pytorch_page"},
    "docs/predict.md": {
        "console": "unit/test_predict_compare.py::test_the_examples_in_the_docs_are_the_commands_output"
    },
    "docs/testing.md": {"python": "unit/test_testing.py::test_the_page_runs_as_written"},
    "docs/transformers.md": {
        "python": [
            "interop/test_torch_docs.py::test_the_transformers_page",
            "interop/test_torch_docs.py::test_the_transformers_page",
            "interop/test_torch_docs.py::test_training_in_a_loop_of_ones_own",
            "interop/test_torch_docs.py::test_training_with_trainer",
        ]
    },
}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_test(page):
    count: dict[str, int] = {}
    for language, _ in blocks(page):
        if language.partition(" ")[0] not in SHOWN:
            count[language] = count.get(language, 0) + 1
    run_by = RUN_BY.get(page, {})
    assert count.keys() == run_by.keys()
    for language, tests in run_by.items():
        if isinstance(tests, str):
            tests = [tests]
        else:
            assert len(tests) == count[language], language
        for test in tests:
            file, function = test.split("::")
            source = (ROOT / "tests" / file).read_text()
            (found,) = (f for f in ast.parse(source).body if getattr(f, "name", "") == function)
            body = ast.get_source_segment(source, found)
            assert page.removeprefix("docs/") in body, f"{test} does not read {page}"


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_are_python(page):
    for block in code_blocks(page, "python"):
        ast.parse(block)


def test_the_first_command(tmp_path):
    """Its set-up is CI's; its programs run as they stand, from where pip put them."""
    (first, _), (install, *_) = code_blocks("README.md", "sh"), code_blocks("docs/install.md", "sh")
    set_up, pip, *programs = commands(first)
    assert shlex.join(set_up) in (ROOT / ".ci" / "run").read_text().splitlines()
    assert pip == [".venv/bin/pip", "install", "."] and commands(install) == [["pip", *pip[1:]]]
    assert [words[:2] for words in programs] == [
        [".venv/bin/baracuda-kernels", name] for name in ("sample", "run")
    ]
    script = shutil.which("baracuda-kernels", path=sysconfig.get_path("scripts"))
    installed = [sys.executable, "-m", "baracuda_kernels"] if script is None else [script]
    for _, *arguments in programs:
        done = subprocess.run(
            [*installed, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
    out = load_file(tmp_path / "out.safetensors")
    assert out["y"].dtype == ml_dtypes.bfloat16 and out["y"].shape == (1, 8, 4096, 128)
    assert out["lse"].shape == (1, 8, 4096)
    (error,) = re.findall(r"^ *y: +rms (\S+)", done.stdout, re.MULTILINE)
    assert float(error) < 2e-4


def test_ci_runs_the_readmes_test_command():
    (block,) = (b for b in code_blocks("README.md", "sh") if "pytest" in b)
    assert block.strip() in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readmes_whole_arrays():
    (block,) = (b for b in code_blocks("README.md", "python") if "run_local_ring" in b)
    scope = {}
    exec(block, scope)  # noqa: S102 - a page's own program
    assert scope["y"].shape == (1, 8, 1024, 64) and scope["lse"].shape == (1, 8, 1024)


def test_the_first_page_runs_as_written():
    (block,) = code_blocks("docs/index.md", "python")
    scope = {}
    exec(block, scope)  # noqa: S102 - a page's own program
    assert scope["y"].shape == (1, 8, 1024, 64)


def test_the_gradients_as_written():
    scope = {}
    for block in code_blocks("docs/architecture.md", "python"):  # one program
        exec(block, scope)  # noqa: S102 - a page's own program
    exact = attention_backward(*(scope[name] for name in ("q", "k", "v", "dy")), is_causal=True)
    for name, truth in zip(("dq", "dk", "dv"), exact, strict=True):
        assert abs(scope[name] - truth).max() < 1e-5
        assert abs(scope[f"ring_{name}"] - truth).max() < 1e-5


TINY_OP = ROOT / "tests" / "third_party" / "tiny_op"


def test_one_register_call(tmp_path):
    (block,) = code_blocks("docs/developer-guide.md", "python")
    program = tmp_path / "register.py"
    before = """
from baracuda_kernels import registry
from baracuda_kernels import Direction
from baracuda_kernels.registry import OpSpec, ProblemOption
from tiny_op import ScaleBackwardPlan as MyBackwardPlan, ScaleDescriptor as MyDescriptor
from tiny_op import ScalePlan as MyPlan, candidates, skus
"""
    after = """
assert registry.get("my_op") is SPEC
assert SPEC.problem() == MyDescriptor(5, 3.0)
print(registry.explain(MyDescriptor(5, 3.0), "host", direction="BACKWARD").family)
"""
    program.write_text(before + block + after)
    path = os.pathsep.join([str(TINY_OP), os.environ.get("PYTHONPATH", "")])
    assert run_program(program, tmp_path, environment={"PYTHONPATH": path}) == "tiny\n"


def test_the_entry_point_of_another_package():
    """What docs/developer-guide.md declares is what tiny_op declares, but for the names."""
    (block,) = code_blocks("docs/developer-guide.md", "toml")
    renamed = block.replace("my_op", "tiny_scale").replace("my_package", "tiny_op")
    assert renamed in (TINY_OP / "pyproject.toml").read_text()
    tomllib.loads(block)
