"""run_local_ring on the host: the real plans and the real ring loop against float64."""

import importlib.util
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_kernels as bk
from baracuda_kernels.testing import (
    TOLERANCES,
    TORCH_DTYPES,
    assert_close,
    attention,
    max_score,
    numpy_qkv,
    rms_over_rounding,
)

LAYOUTS = ("contiguous", "zigzag", "striped")

problems = {
    "seed": st.integers(0, 2**32 - 1),
    "ranks": st.integers(1, 8),
    "layout": st.sampled_from(LAYOUTS),
    "is_causal": st.booleans(),
    "batch": st.integers(1, 2),
    "kv_heads": st.integers(1, 2),
    "group": st.sampled_from([1, 1, 2, 4]),
    "rows": st.integers(0, 24),
    "keys": st.integers(0, 24),
    "head_dim": st.sampled_from([1, 3, 8, 16, 33, 64]),
    "distribution": st.sampled_from(["normal", "heavy"]),
}


def run_and_check(dtype, scale, score_matters, **p):
    q, k, v = numpy_qkv(
        p["distribution"],
        dtype,
        p["seed"],
        batch=p["batch"],
        heads=p["kv_heads"] * p["group"],
        kv_heads=p["kv_heads"],
        query_len=p["rows"] * p["ranks"],
        key_len=p["keys"] * p["ranks"],
        head_dim=p["head_dim"],
    )
    y, lse = bk.run_local_ring(
        q,
        k,
        v,
        p["ranks"],
        is_causal=p["is_causal"],
        scale=scale,
        sequence_layout=p["layout"],
    )
    assert y.dtype == q.dtype and y.shape == q.shape
    assert lse.dtype == (np.float64 if dtype == "f64" else np.float32)
    exact_y, exact_lse = attention(q, k, v, scale=scale, is_causal=p["is_causal"])
    lse_score = max_score(q, k, scale)
    score = lse_score if score_matters else 0.0
    summands = None
    if p["batch"] * p["kv_heads"] * p["head_dim"] < 32:
        summands, _ = attention(q, k, np.abs(v), scale=scale, is_causal=p["is_causal"])
    assert_close(
        *("host", dtype, y, exact_y, lse, exact_lse),
        score=score,
        lse_score=lse_score,
        summands=summands,
    )


@settings(max_examples=150, deadline=None)
@given(scale=st.sampled_from([-0.1, 0.0, None, 10.0]), **problems)
def test_f64(scale, **problem):
    run_and_check("f64", scale, False, **problem)


@settings(max_examples=100, deadline=None)
@given(**problems)
def test_f32_at_the_default_scale(**problem):
    run_and_check("f32", None, False, **problem)


@settings(max_examples=60, deadline=None)
@given(scale=st.sampled_from([-0.1, 0.0, 10.0]), **problems)
def test_f32_at_other_scales(scale, **problem):
    # Here scores reach hundreds, and an exponential's relative error grows with its argument.
    run_and_check("f32", scale, True, **problem)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["f16", "bf16"]),
    scale=st.sampled_from([-0.1, 0.0, None, 10.0]),
    **problems,
)
def test_16_bit(dtype, scale, **problem):
    run_and_check(dtype, scale, scale == 10.0, **problem)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_16_bit_error_is_that_of_rounding_at_every_world_size(dtype, is_causal):
    q, k, v = numpy_qkv("normal", dtype, 5, heads=4, kv_heads=2, query_len=512, head_dim=64)
    exact, _ = attention(q, k, v, is_causal=is_causal)
    ratios = []
    for ranks in (1, 2, 4, 8):
        y, _ = bk.run_local_ring(q, k, v, ranks, is_causal=is_causal, sequence_layout="zigzag")
        ratios.append(rms_over_rounding(y, exact, dtype))
    limit = TOLERANCES["host", dtype].over_rounding
    assert max(ratios) <= limit, ratios
    assert all(abs(ratio / ratios[0] - 1) <= 0.02 for ratio in ratios), ratios


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_argument_has_its_effect(layout):
    q, k, v = numpy_qkv("normal", "f32", 1, heads=2, query_len=32, head_dim=16)
    plain, _ = bk.run_local_ring(q, k, v, 4, sequence_layout=layout)
    causal, _ = bk.run_local_ring(q, k, v, 4, is_causal=True, sequence_layout=layout)
    scaled, _ = bk.run_local_ring(q, k, v, 4, scale=0.5, sequence_layout=layout)
    assert not np.allclose(plain, causal) and not np.allclose(plain, scaled)


def test_progress_counts_rank_steps_to_the_end():
    q, k, v = numpy_qkv("normal", "f32", 2, heads=1, query_len=32, head_dim=8)
    seen = []
    bk.run_local_ring(q, k, v, 4, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 16) and seen[-1] == (16, 16)
    assert all(a <= b for a, b in itertools.pairwise(seen))


def test_inputs_are_left_as_they_were():
    q, k, v = numpy_qkv("normal", "f32", 3, heads=2, query_len=24, head_dim=8)
    before = [x.copy() for x in (q, k, v)]
    for x in (q, k, v):
        x.flags.writeable = False
    bk.run_local_ring(q, k, v, 3, is_causal=True)
    assert all(np.array_equal(x, old) for x, old in zip((q, k, v), before, strict=True))


def test_strided_whole_arrays():
    """[B,S,H,D] storage seen as [B,H,S,D]."""
    q, k, v = numpy_qkv("normal", "f32", 4, batch=2, heads=3, query_len=16, head_dim=8)
    views = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (q, k, v)]
    y, lse = bk.run_local_ring(*views, 2)
    same_y, same_lse = bk.run_local_ring(q, k, v, 2)
    assert np.array_equal(y, same_y) and np.array_equal(lse, same_lse)


def _qkv(q=(1, 2, 8, 4), k=(1, 2, 8, 4), v=(1, 2, 8, 4), dtypes=("f4", "f4", "f4")):
    return [np.zeros(shape, dtype) for shape, dtype in zip((q, k, v), dtypes, strict=True)]


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        (_qkv(q=(1, 2, 10, 4)), {"world_size": 4}, r"q: got 10 rows.*8 and 12$"),
        (_qkv(k=(1, 2, 6, 4), v=(1, 2, 6, 4)), {"world_size": 4}, r"k, v: got 6 rows.*4 and 8$"),
        (_qkv(), {"world_size": 0}, "world_size"),
        (_qkv(q=(2, 8, 4)), {}, "must be \\[B, H, S, D\\]"),
        (_qkv(v=(1, 2, 4, 4)), {}, "must be equal"),
        (_qkv(k=(1, 2, 8, 8), v=(1, 2, 8, 8)), {}, "head_dim"),
        (_qkv(q=(1, 3, 8, 4)), {}, "heads"),
        (_qkv(dtypes=("f4", "f8", "f4")), {}, "must be as q"),
        (_qkv(dtypes=("i4", "i4", "i4")), {}, "int32"),
        (_qkv(), {"sequence_layout": "spiral"}, "contiguous"),
        (_qkv(), {"device": "tpu"}, "device"),
        (_qkv(), {"scale": float("nan")}, "scale"),
        ([[1.0]] * 3, {}, "must be \\[B, H, S, D\\]"),
        ([range(3)] * 3, {}, "q: got range.*must be an array"),
    ],
)
def test_bad_arguments_are_typed_errors(arrays, options, says):
    with pytest.raises(bk.errors.InvalidProblemError, match=says):
        bk.run_local_ring(*arrays, **{"world_size": 2, **options})


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_number_of_threads_changes_no_bit(dtype):
    from baracuda_kernels._core import _info

    arrays = numpy_qkv("normal", dtype, 8, heads=3, query_len=300, head_dim=40)
    before, answers = _info.host_info()["threads"], []
    try:
        for threads in (1, 2, 5):
            _info.set_host_threads(threads)
            assert _info.host_info()["threads"] == threads
            answers.append(bk.run_local_ring(*arrays, 3, is_causal=True))
    finally:
        _info.set_host_threads(before)
    for y, lse in answers[1:]:
        assert np.array_equal(answers[0][0], y) and np.array_equal(answers[0][1], lse)
    for bad in (0, -1, "2"):
        with pytest.raises(bk.errors.InvalidProblemError, match="threads"):
            _info.set_host_threads(bad)


def test_another_process_gives_the_same_bits():
    """With other addresses and another number of threads."""
    script = (
        "import hashlib\nimport baracuda_kernels as bk\nfrom baracuda_kernels import testing\n"
        "for dtype in testing.NUMPY_DTYPES:\n"
        "    q, k, v = testing.numpy_qkv('normal', dtype, 9, heads=4, kv_heads=2, query_len=90, "
        "head_dim=40)\n"
        "    found = bk.run_local_ring(q, k, v, 3, is_causal=True, sequence_layout='zigzag', dy=q)\n"
        "    print(dtype, *(hashlib.sha256(x.tobytes()).hexdigest() for x in found))\n"
    )
    said = {
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True,
                       env={**os.environ, "BARACUDA_NUM_THREADS": threads}).stdout
        for threads in ("1", "3", "3")
    }  # fmt: skip
    assert len(said) == 1 and len(said.pop().split()) == 4 * 6


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="capability: torch is installed"
)
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_torch_tensors_on_the_host(dtype):
    import torch

    arrays = numpy_qkv("normal", "f64", 6, heads=2, query_len=24, head_dim=16)
    torch_dtype = getattr(torch, TORCH_DTYPES[dtype])
    tensors = [torch.from_numpy(x).to(torch_dtype).requires_grad_() for x in arrays]
    # Without the recorded gradient the output would be wrong.
    with pytest.raises(bk.UnsupportedError, match="q: got a tensor that requires grad"):
        bk.run_local_ring(*tensors, 3)
    with torch.no_grad():
        y, lse = bk.run_local_ring(*tensors, 3, is_causal=True, sequence_layout="zigzag")
    with pytest.raises(bk.InvalidProblemError, match="must be as q"):
        bk.run_local_ring(tensors[0].detach(), tensors[1].detach().numpy()
                          if dtype != "bf16" else arrays[1], tensors[2].detach(), 3)  # fmt: skip
    parameter = torch.nn.Parameter(tensors[1].detach(), requires_grad=False)
    at = torch.device("cpu")
    beside, _ = bk.run_local_ring(tensors[0].detach(), parameter, tensors[2].detach(), 3, device=at,
                                  is_causal=True)  # fmt: skip
    assert (beside - y).abs().max() < 0.05
    assert isinstance(y, torch.Tensor) and y.dtype == torch_dtype
    exact = attention(*(x.detach().double().numpy() for x in tensors), is_causal=True)
    assert_close("host", dtype, y, exact[0], lse, exact[1])
