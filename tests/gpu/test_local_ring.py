"""run_local_ring and the command line on a GPU: NumPy by cuda.core, tensors in place."""

import json

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import baracuda_kernels as bk
from baracuda_kernels.cli import main
from baracuda_kernels.testing import assert_close, attention, numpy_qkv

pytestmark = pytest.mark.gpu

SHAPE = {"batch": 1, "heads": 4, "kv_heads": 2, "query_len": 240, "head_dim": 64}


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "family"), [("f32", "simt"), ("f64", "simt"), ("f16", "sm80"), ("bf16", "sm80")]
)
def test_numpy_arrays_go_through_cuda_core(torch, dtype, family, ranks):
    q, k, v = numpy_qkv("normal", dtype, 0, **SHAPE)
    steps = []
    y, lse = bk.run_local_ring(
        *(q, k, v, ranks),
        is_causal=True,
        sequence_layout="zigzag",
        device="cuda",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert isinstance(y, np.ndarray) and y.dtype == q.dtype and y.shape == q.shape
    exact = attention(q, k, v, is_causal=True)
    assert_close(family, dtype, y, exact[0], lse, exact[1])
    assert steps[-1] == (ranks**2, ranks**2)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_tensors_come_back_to_where_they_were(torch, where):
    arrays = numpy_qkv("normal", "f32", 1, **SHAPE)
    tensors = [torch.from_numpy(x).to(torch.bfloat16).to(where) for x in arrays]
    rounded = [x.astype(ml_dtypes.bfloat16) for x in arrays]
    y, lse = bk.run_local_ring(*tensors, 4, device="cuda:0")
    assert y.device == tensors[0].device and lse.device == y.device and y.dtype == torch.bfloat16
    exact = attention(*rounded)
    assert_close("sm80", "bf16", y, exact[0], lse, exact[1])


def test_a_tensor_on_the_gpu_must_name_its_device(torch):
    x = torch.zeros(1, 1, 8, 64, device="cuda", dtype=torch.float16)
    with pytest.raises(bk.errors.InvalidProblemError, match=r"cuda:0"):
        bk.run_local_ring(x, x, x, 2)


def test_a_device_that_is_not_there(torch):
    x = np.zeros((1, 1, 8, 64), np.float32)
    with pytest.raises(bk.errors.InvalidProblemError, match="cuda:99"):
        bk.run_local_ring(x, x, x, 2, device="cuda:99")


def test_the_command_line_on_the_gpu(torch, tmp_path):
    given, out = tmp_path / "qkv.safetensors", tmp_path / "out.safetensors"

    def run(*arguments):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    run("sample", "-o", given, "--seq", 512, "--heads", 4, "--head-dim", 128, "--dtype", "bf16")
    report = json.loads(
        run("run", given, *("--ranks", 4, "--causal", "--layout", "zigzag"), *("--device", "cuda"),
            *("--check", "--json"), *("-o", out))
    )  # fmt: skip
    check = report["check"]
    assert check["y"]["rms"] < 2 * check["rounding"]["rms"]
    facts = json.loads(run("info", "--json"))
    assert facts["gpu_reason"] == "" and facts["devices"]
    rows = {row["dtype"]: row["family"] for row in facts["runs_here"] if row["device"] == "cuda:0"}
    assert rows["F64"] == "simt" and rows["BF16"] == report["family"]
