"""interop.jax on several GPUs of one process: XLA moves K and V between them."""

import pytest
from helpers.pages import ROOT, run_page, run_program

from baracuda_kernels.registry import Architecture

pytestmark = [pytest.mark.multi_gpu(2), pytest.mark.framework("jax")]

ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_two_gpus_give_the_single_device_answer(tmp_path, dtype):
    family = "sm90a" if Architecture.here().compute_capability == 90 else "sm80"
    program = ROOT / "tests" / "helpers" / "jax_gpu.py"
    said = run_program(
        program, tmp_path, "ring", dtype, family, "128", environment=ENVIRONMENT, timeout=240
    )
    assert "passed on 2 x" in said


@pytest.mark.parametrize("dtype, head_dim", [("bf16", 128), ("f16", 64), ("f32", 40)])
def test_two_gpus_give_the_single_device_gradients(tmp_path, dtype, head_dim):
    program = ROOT / "tests" / "helpers" / "jax_gradients.py"
    said = run_program(
        program, tmp_path, "ring", dtype, str(head_dim), environment=ENVIRONMENT, timeout=240
    )
    assert "passed on 2 x" in said


def test_the_page_runs_as_written(tmp_path):
    run_page("jax.md", tmp_path, environment=ENVIRONMENT, timeout=240)
