"""JAX, CuPy and cuda.core on one GPU: the adapter, the pages, the examples."""

import pytest
from helpers.pages import ROOT, run_page, run_program

from baracuda_kernels.registry import Architecture

pytestmark = pytest.mark.gpu


@pytest.mark.framework("jax")
@pytest.mark.parametrize("dtype, head_dim", [("bf16", 128), ("f16", 96), ("f32", 40)])
@pytest.mark.parametrize("case", ["whole", "steps"])
def test_jax(request, tmp_path, case, dtype, head_dim):
    family = "simt" if dtype == "f32" else "sm80"
    if head_dim == 128 and Architecture.here().compute_capability == 90:
        family = "sm90a"
    said = run_program(
        ROOT / "tests" / "helpers" / "jax_gpu.py",
        tmp_path,
        case,
        dtype,
        family,
        str(head_dim),
        timeout=240,
    )
    passed(request, said)


@pytest.mark.framework("jax")
@pytest.mark.parametrize("dtype, head_dim", [("bf16", 128), ("f16", 64), ("f16", 96), ("f32", 40)])
@pytest.mark.parametrize("case", ["whole", "steps"])
def test_jax_gradients(request, tmp_path, case, dtype, head_dim):
    program = ROOT / "tests" / "helpers" / "jax_gradients.py"
    passed(request, run_program(program, tmp_path, case, dtype, str(head_dim), timeout=240))


def passed(request, said):
    if "JAX has no CUDA device here" in said:
        if request.config.getoption("--require-gpu"):
            pytest.fail("--require-gpu: needs JAX with CUDA")
        pytest.skip("needs JAX with CUDA")
    assert "passed on" in said


@pytest.mark.framework("cupy")
def test_the_cupy_page_runs_as_written(tmp_path):
    run_page("cupy.md", tmp_path)


@pytest.mark.framework("cuda.core")
def test_the_cuda_core_page_runs_as_written(tmp_path):
    run_page("cuda-core.md", tmp_path)


@pytest.mark.framework("cupy")
@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_the_cupy_example(tmp_path, layout):
    said = run_program(ROOT / "examples" / "cupy_ring.py", tmp_path, "--layout", layout)
    assert "rms error" in said
    assert float(said.split("rms error ")[1].split()[0]) < 1e-3
