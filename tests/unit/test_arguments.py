"""Arguments in the forms that users have are taken; an ambiguous one is refused by name."""

import math
import time

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels import local_ring, predict, reference
from baracuda_kernels.testing import attention


@pytest.fixture
def qkv():
    return np.random.default_rng(0).standard_normal((3, 1, 2, 8, 4)).astype(np.float32)


def test_numpy_scalars_and_the_hosts_other_name(qkv):
    y, lse = bk.run_local_ring(
        *qkv, np.int64(4), is_causal=np.True_, scale=np.float32(0.25), device="cpu"
    )
    expected, expected_lse = bk.run_local_ring(*qkv, 4, is_causal=True, scale=0.25)
    assert (y == expected).all() and (lse == expected_lse).all()
    assert (bk.positions(np.int64(2), np.int32(1), np.uint8(4)) == [2, 3]).all()
    assert len(bk.shard(qkv[0], np.int64(4), dim=np.int64(-2))) == 4
    problem = predict.RingProblem(seq=np.int64(64), ranks=np.int32(4), heads=2, head_dim=np.int8(8),
                                  causal=np.True_)
    assert (problem.chunk, type(problem.seq), problem.causal) == (16, int, True)


def test_lists_are_arrays(qkv):
    y, _ = bk.run_local_ring(*(x.tolist() for x in qkv), 2)
    assert y.dtype == np.float64
    exact, _ = attention(*qkv.astype(np.float64))
    assert np.allclose(y, exact, rtol=1e-12)
    assert (bk.unshard(bk.shard([[1, 2, 3, 4]], 2, dim=1), dim=1) == [[1, 2, 3, 4]]).all()
    with pytest.raises(bk.InvalidProblemError, match="q: got a list that is no array"):
        bk.run_local_ring([[1.0], [1.0, 2.0]], qkv[1], qkv[2], 2)


def test_a_memmap_beside_an_ndarray(qkv, tmp_path):
    mapped = np.memmap(tmp_path / "k", np.float32, "w+", shape=qkv[1].shape)
    mapped[:] = qkv[1]
    y, _ = bk.run_local_ring(qkv[0], mapped, qkv[2], 2)
    assert (y == bk.run_local_ring(*qkv, 2)[0]).all() and type(y) is np.ndarray


def test_a_mask_is_never_lost(qkv):
    masked = np.ma.masked_array(qkv[1], mask=qkv[1] > 0)
    for name, call in {
        "k": lambda: bk.run_local_ring(qkv[0], masked, qkv[2], 2),
        "x": lambda: bk.shard(masked, 2, sequence_layout="zigzag"),
        r"shards\[0\]": lambda: bk.unshard([masked, masked]),
        "v": lambda: reference.attention(qkv[0], qkv[1], masked),
    }.items():
        with pytest.raises(bk.InvalidProblemError, match=f"{name}: got a masked array"):
            call()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"world_size": "2"}, "world_size: got '2'"),
        ({"world_size": 2.0}, "world_size: got 2.0"),
        ({"world_size": True}, "world_size: got True"),
        ({"world_size": 10**9}, "world_size: got 1000000000, must be an integer from 1 to 65536"),
        ({"k": None}, "k: got None, must be an array"),
        ({"sequence_layout": None}, "sequence_layout: got None"),
        ({"is_causal": 1}, "is_causal: got 1, must be a bool"),
        ({"is_causal": "no"}, "is_causal: got 'no'"),
        ({"scale": "1"}, "scale: got '1', must be a number"),
        ({"scale": True}, "scale: got True"),
        ({"scale": np.ones(2)}, "scale: got array"),
        ({"scale": math.inf}, "scale: got inf"),
        ({"device": None}, "device: got None"),
        ({"device": "cpu:1"}, "device: got 'cpu:1'"),
        ({"device": 0}, "device: got 0"),
        ({"timeout": 0}, "timeout: got 0"),
        ({"timeout": "1"}, "timeout: got '1'"),
    ],
    ids=str,
)
def test_what_would_be_misread_is_refused(qkv, change, says):
    arguments = {**dict(zip("qkv", qkv, strict=True)), "world_size": 2, **change}
    with pytest.raises(bk.InvalidProblemError) as caught:
        bk.run_local_ring(**arguments)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bk.positions(2, 4, 4), "rank: got 4, must be an integer from 0 to 3"),
        (lambda: bk.positions(1.5, 0, 4), "length: got 1.5"),
        (lambda: bk.positions(None, 0, 4), "length: got None"),
        (lambda: bk.positions(2, 0, 0), "world_size: got 0"),
        (lambda: bk.positions(2, 0, 2**62), "world_size: got 4611686018427387904, must be an integer"),
        (lambda: bk.positions(2**62, 0, 2), "length: got 4611686018427387904, must be an integer"),
        (lambda: bk.shard(np.zeros((1, 1, 4)), "2"), "world_size: got '2'"),
        (lambda: bk.shard(None, 2), "x: got None"),
        (lambda: bk.shard(np.zeros((1, 1, 4)), 2, dim=None), "dim: got None"),
        (lambda: bk.unshard([None, None]), r"shards\[0\]: got None"),
        (lambda: predict.RingProblem(seq=8.0, ranks=2, heads=1, head_dim=8), "seq: got 8.0"),
        (lambda: predict.RingProblem(seq=8, ranks=True, heads=1, head_dim=8), "ranks: got True"),
        (lambda: predict.ComputeRates.constant(1e308), "full: got"),
        (lambda: predict.ComputeRates.constant(1e-308), "full: got"),
    ],
)
def test_numbers_that_are_none(call, says):
    with pytest.raises(bk.InvalidProblemError, match=says):
        call()


def test_a_timeout_stops_a_host_run():
    q = np.zeros((1, 8, 2**14, 64), np.float32)
    seen = []
    with pytest.raises(bk.NcclTimeoutError, match="stopped after 0.05 s"):
        bk.run_local_ring(q, q, q, 16, timeout=0.05, progress=lambda *done: seen.append(done))
    assert seen[0] == (0, 256) and (256, 256) not in seen
    assert bk.run_local_ring(q[:, :1, :64], q[:, :1, :64], q[:, :1, :64], 2, timeout=60)


def test_progress_moves_within_a_step(monkeypatch):
    """Progress within a step: by whole steps it would stop for four of sixteen steps at a time."""
    monkeypatch.setattr(local_ring, "_POLL", 0.001)
    q, seen = np.zeros((1, 8, 2**14, 64), np.float32), []
    bk.run_local_ring(q, q, q, 4, progress=lambda done, total: seen.append(done))
    assert seen[0] == 0 and seen[-1] == 16 and seen == sorted(seen)
    assert any(done % 4 for done in seen), seen


def test_progress_moves_within_one_rank_s_step(monkeypatch):
    monkeypatch.setattr(local_ring, "_POLL", 0.001)
    q, seen = np.zeros((1, 32, 2**12, 64), np.float32), []
    bk.run_local_ring(q, q, q, 1, progress=lambda *done: seen.append(done))
    assert seen[0] == (0, 1) and seen[-1] == (1, 1)
    done = [x for x, _ in seen]
    assert done == sorted(done) and len({x for x in done if 0 < x < 1}) > 2, seen


def test_a_progress_that_raises_stops_the_run():
    """The error comes at once, and not after the run, for which the pool would wait."""
    q = np.zeros((1, 8, 2**14, 64), np.float32)

    def stop(done, total):
        if done >= 16:
            raise KeyError("enough")

    start = time.monotonic()
    with pytest.raises(KeyError):
        bk.run_local_ring(q, q, q, 16, progress=stop)
    stopped = time.monotonic() - start
    start = time.monotonic()
    bk.run_local_ring(q, q, q, 16)
    assert stopped < 0.7 * (time.monotonic() - start)


def test_select_without_a_gpu_says_what_to_give():
    if bk._devices():
        pytest.skip("this machine has a CUDA device")
    descriptor = bk.RingAttentionDescriptor(1, 1, 1, 1, 8)
    for stream in (None, 0):
        with pytest.raises(bk.UnsupportedError, match=r"Stream\.host\(\)"):
            bk.RingAttentionPlan.select(stream, descriptor)


@pytest.mark.parametrize(("plan", "kind"), [(bk.RingAttentionPlan, bk.RingAttentionDescriptor),
                                            (bk.FlashSdpaPlan, bk.FlashSdpaDescriptor)])
def test_select_takes_its_arguments_in_explains_order(plan, kind):
    """The order descriptor, stream, preference; the earlier order and both names still work."""
    descriptor, host = kind(1, 2, 4, 4, 8), bk.Stream.host()
    preference = bk.PlanPreference(math_precision="F32")
    assert plan.select(descriptor, host, preference).family == "host"
    assert plan.select(host, descriptor, preference).family == "host"
    assert plan.select(stream=host, descriptor=descriptor, preference=preference).family == "host"
    assert plan.select(descriptor, stream=host).descriptor is descriptor
    for wrong in ((descriptor, descriptor), (host, host), (descriptor, "host"), (None, None)):
        with pytest.raises(bk.BaracudaError):
            plan.select(*wrong)
    with pytest.raises(bk.UnsupportedError, match="math_precision"):
        plan.select(descriptor, host, bk.PlanPreference(math_precision="TF32"))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: bk.run_local_ring(x, x, x, 2, progress=5), "progress: got 5, must be a function"),
        (lambda x: bk.run_local_ring(x, x, x, 2, scale=[1, [2, 3]]), "scale: got .* must be a number"),
        (lambda x: bk.unshard(5), "shards: got int, must be a sequence"),
        (lambda x: bk.unshard(np.zeros(())), "shards: got ndarray, must be a sequence"),
        (lambda x: bk.run_local_ring(x, x, x, 2, dy=memoryview(x)),
         "dy: got memoryview of no dtype, must be ndarray of float32"),
        (lambda x: bk.run_local_ring(x, bk.TensorRef(x), x, 2),
         "k: got TensorRef of no dtype, must be as q, ndarray of float32"),
        (lambda x: reference.attention(x, x, x, scale=np.ones(8)), "scale: got .* must be a number"),
        (lambda x: reference.attention_backward(x, x, x, x, scale="1"),
         "scale: got '1', must be a number"),
        (lambda x: bk.unshard([x, x.astype("f8")]), "shards: got numpy float32 and numpy float64"),
    ],
)
def test_what_was_an_error_of_python_or_none(call, says):
    x = np.zeros((1, 2, 8, 4), np.float32)
    with pytest.raises(bk.InvalidProblemError, match=says):
        call(x)


@pytest.mark.parametrize("row", [{"params": 3}, {"ours": 10**400}], ids=["params", "ours"])
def test_a_row_of_evidence_that_is_none(row):
    from helpers.predict_cases import EVIDENCE

    evidence = {**EVIDENCE, "rows": [{**EVIDENCE["rows"][0], **row}, *EVIDENCE["rows"]]}
    with pytest.raises(bk.InvalidProblemError, match="measured: got a row"):
        predict.measured_rates(evidence, "sm80", "bf16", 128)
