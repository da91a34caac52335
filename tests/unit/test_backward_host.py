"""The host family's gradients: against float64, identities, and exact zeros."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.gradients import (
    HOST,
    NAMES,
    Problem,
    descriptor,
    draw,
    forward,
    host_gradients,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import baracuda_kernels as bk
from baracuda_kernels._core import _info
from baracuda_kernels.reference import attention_backward
from baracuda_kernels.testing import assert_gradients, error_of, max_score, rms_over_rounding

DTYPES = ("f16", "bf16", "f32", "f64")


def summands(x, scale=None):
    """The size of the summands of dq."""
    scale = 1 / math.sqrt(x.q.shape[-1]) if scale is None else abs(scale)
    norms = [np.linalg.norm(a.astype(np.float64), axis=-1).max(initial=0)
             for a in (x.k, x.v, x.dy)]
    other = 1 if x.dlse is None else 1 + abs(x.dlse).max(initial=0)
    return max(scale, 1) * max(math.prod(norms), norms[0]) * other


def check(x, dtype, *, exact=None, peaked=False, **options):
    """Check the host's gradients of a problem against float64, and return them."""
    oracle = {name: value for name, value in options.items() if name != "wide"}
    if exact is None:
        exact = attention_backward(*x[:4], dlse=x.dlse, **oracle)
    got = host_gradients(x, **options)
    score = max_score(x.q, x.k, options.get("scale"))
    assert_gradients("host", dtype, got, exact, score=score if score > 40 else 0.0,
                     summands=summands(x, options.get("scale")), peaked=peaked)
    return got


LENGTHS = st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 127, 128, 129, 200]))


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 1000), batch=st.integers(1, 2),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), query_len=LENGTHS, key_len=LENGTHS,
    head_dim=st.one_of(st.integers(1, 80), st.sampled_from([128, 200])), is_causal=st.booleans(),
    dlse=st.booleans(), wide=st.booleans(),
)  # fmt: skip
@example("f32", 0, 1, (1, 1), 1, 1, 1, True, False, False)
@example("f64", 0, 2, (4, 2), 65, 129, 17, True, True, True)
@example("bf16", 0, 1, (2, 2), 129, 65, 64, False, True, True)
@example("f16", 510, 2, (3, 1), 129, 129, 128, True, False, False)  # rows of few keys weigh much
def test_against_float64(dtype, seed, batch, heads, query_len, key_len, head_dim, is_causal, dlse,
                         wide):
    # delta is made of the rounded y. With fewer numbers a row, or fewer rows or keys, the error of
    # that can exceed the gradient, as where a softmax row is nearly one-hot.
    assume(min(head_dim, query_len, key_len) >= 8 or dtype in ("f32", "f64"))
    x = draw(dtype, seed, batch=batch, heads=heads[0], kv_heads=heads[1], query_len=query_len,
             key_len=key_len, head_dim=head_dim, dlse=dlse)
    # With few keys the softmax of a row is peaked, and delta has the rounding error of y.
    check(x, dtype, is_causal=is_causal, wide=wide, peaked=min(query_len, key_len) < 32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tolerance_of_many_numbers(dtype):
    """16-bit gradients are rounded once: shown by the rms error of large outputs."""
    x = draw(dtype, 3, heads=4, kv_heads=2, query_len=520, head_dim=64)
    for is_causal in (False, True):
        got = check(x, dtype, is_causal=is_causal)
        exact = attention_backward(*x[:4], is_causal=is_causal)
        for one, truth in zip(got, exact, strict=True):
            assert one.itemsize > 2 or rms_over_rounding(one, truth, dtype) <= 1.25


@pytest.mark.parametrize(("dtype", "head_dim"), [("f32", 256), ("f64", 512), ("f32", 1000),
                                                 ("f16", 1024), ("f64", 1024)])  # fmt: skip
def test_long_rows(dtype, head_dim):
    x = draw(dtype, 4, heads=2, kv_heads=1, query_len=70, key_len=90, head_dim=head_dim)
    check(x, dtype, is_causal=True)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-3, 2.0])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_any_scale(dtype, scale):
    x = draw(dtype, 5, query_len=70, key_len=80)
    check(x, dtype, scale=scale, is_causal=True)


@pytest.mark.parametrize("shift", [200.0, -200.0])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_large_lse(dtype, shift):
    """A score that is added to all keys of a row changes only lse, not P and the gradients."""
    x = draw(dtype, 6, query_len=70, head_dim=16)
    q, k = x.q.copy(), x.k.copy()
    q[..., 0], k[..., 0] = 1.0, shift
    x = x._replace(q=q, k=k)
    _, lse = forward(x, scale=1.0)
    assert (np.sign(shift) * lse > 150).all()
    check(x, dtype, scale=1.0, is_causal=True)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_peaked_rows(dtype):
    x = draw(dtype, 7, query_len=150, head_dim=64, logits=8.0)
    check(x, dtype, is_causal=True, peaked=True)


def test_f16_gradients_do_not_underflow():
    """Weights average 1/K and dy is small: their products lie below the least float16, the sums not."""
    x = draw("f16", 8, heads=1, query_len=256, key_len=4096, head_dim=32)
    x = x._replace(dy=(x.dy * np.float16(1e-3)).astype(np.float16))
    exact = attention_backward(*x[:4])
    for one, truth in zip(host_gradients(x), exact, strict=True):
        rounding = error_of(truth.astype(np.float16), truth)["relative"]
        assert error_of(one, truth)["relative"] <= 1.01 * rounding
    for one, truth in zip(host_gradients(x, wide=True)[1:], exact[1:], strict=True):
        assert error_of(one, truth)["relative"] < 1e-4


# Identities of sums, which a wrong delta, a wrong mask or a lost tile would break.


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_keys_gradients_sum_to_what_dlse_gives(is_causal):
    """sum_j dk_j = scale * sum_i dlse_i q_i, for each row's dS sums to its dlse: 0 without one."""
    x = draw("f64", 10, heads=2, query_len=100, key_len=100, head_dim=24, dlse=True)
    _, dk, _ = host_gradients(x, is_causal=is_causal)
    expected = np.einsum("bhq,bhqd->bhd", x.dlse, x.q) / math.sqrt(24)
    np.testing.assert_allclose(dk.sum(2), expected, atol=1e-12)
    _, dk, _ = host_gradients(x._replace(dlse=None), is_causal=is_causal)
    assert abs(dk.sum(2)).max() < 1e-12
    assert abs(dk).max() > 0.1


def test_the_values_gradients_sum_to_dy_of_the_rows_that_see_a_key():
    x = draw("f64", 11, query_len=90, key_len=50)
    for is_causal in (False, True):
        _, _, dv = host_gradients(x, is_causal=is_causal)
        np.testing.assert_allclose(dv.sum(2), x.dy.sum(2), atol=1e-12)


def test_dq_along_q_is_dk_along_k():
    """Both are the derivative by the scale."""
    x = draw("f64", 12, query_len=90, key_len=130, dlse=True)
    for is_causal in (False, True):
        dq, dk, _ = host_gradients(x, is_causal=is_causal)
        np.testing.assert_allclose(
            np.einsum("bhqd,bhqd->bh", dq, x.q), np.einsum("bhkd,bhkd->bh", dk, x.k), rtol=1e-10)


def test_equal_values_leave_queries_and_keys_without_gradient():
    x = draw("f64", 13, query_len=90)
    v = np.broadcast_to(x.v[:, :, :1], x.v.shape)
    dq, dk, dv = host_gradients(x._replace(v=v), is_causal=True)
    assert abs(dq).max() < 1e-13 and abs(dk).max() < 1e-13 and abs(dv).max() > 0.1


def test_grouped_heads_are_the_sum_over_repeated_ones():
    x = draw("f64", 14, batch=2, heads=6, kv_heads=2, query_len=70, key_len=90)
    grouped = host_gradients(x, is_causal=True)
    repeated = host_gradients(
        x._replace(k=np.repeat(x.k, 3, 1), v=np.repeat(x.v, 3, 1)), is_causal=True)
    assert np.array_equal(grouped[0], repeated[0])
    for one, many in zip(grouped[1:], repeated[1:], strict=True):
        np.testing.assert_allclose(one, many.reshape(2, 2, 3, 90, 16).sum(2), atol=1e-13)


@pytest.mark.parametrize("dtype", ["bf16", "f32", "f64"])
def test_a_power_of_two_on_dy_is_one_on_all_gradients(dtype):
    x = draw(dtype, 15, query_len=70, key_len=140, dlse=True)
    scaled = x._replace(dy=(x.dy * x.dy.dtype.type(64)), dlse=x.dlse * 64)
    for one, other in zip(host_gradients(x), host_gradients(scaled), strict=True):
        assert np.array_equal(one * one.dtype.type(64), other)


# Exact zeros.


def test_keys_that_no_row_sees_and_rows_that_see_none():
    x = draw("f32", 20, query_len=40, key_len=200)
    _, dk, dv = check(x, "f32", is_causal=True)
    assert (dk[:, :, 40:] == 0).all() and (dv[:, :, 40:] == 0).all()
    none = draw("f32", 21, query_len=5, key_len=0)
    dq, dk, dv = host_gradients(none)
    assert (dq == 0).all() and dk.size == dv.size == 0
    rowless = draw("f32", 22, query_len=0, key_len=150)
    dq, dk, dv = host_gradients(rowless)
    assert dq.size == 0 and (dk == 0).all() and (dv == 0).all()


def test_no_gradient_in_none_out():
    x = draw("bf16", 23, query_len=70)
    for gradient in host_gradients(x._replace(dy=np.zeros_like(x.dy)), is_causal=True):
        assert (gradient == 0).all()


def test_later_keys_leave_earlier_rows_alone():
    x = draw("f32", 24, query_len=200)
    k, v = x.k.copy(), x.v.copy()
    k[:, :, 77:] *= 3
    v[:, :, 77:] = np.inf
    before, after = host_gradients(x, is_causal=True), host_gradients(
        x._replace(k=k, v=v), is_causal=True)
    assert np.array_equal(before[0][:, :, :77], after[0][:, :, :77])
    assert not np.array_equal(before[0][:, :, 77:], after[0][:, :, 77:])


@pytest.mark.parametrize("name", ["q", "k", "v", "dy", "dlse"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
def test_nan_and_inf_reach_what_sees_them_and_nothing_else(dtype, name):
    for value, at in ((np.nan, 0), (np.inf, 70), (np.nan, 131), (np.nan, 149)):
        x = draw(dtype, 25, query_len=150, dlse=True)
        spoilt = getattr(x, name).copy()
        spoilt[(0, 0, at, 3)[:spoilt.ndim]] = value
        x = x._replace(**{name: spoilt})
        exact = attention_backward(*x[:4], dlse=x.dlse, is_causal=True)
        for gradient, got, truth in zip(NAMES, host_gradients(x, is_causal=True), exact,
                                        strict=True):
            wrong = ~np.isfinite(got.astype(np.float64)) != ~np.isfinite(truth)
            # A NaN of a whole row or key has spread over its columns in both, or in neither.
            assert not wrong.any(), (gradient, value, at, np.argwhere(wrong)[:5])


def test_a_row_without_keys_gives_nothing_whatever_it_holds():
    """lse = -inf: no step shows a key to the row."""
    x = draw("f32", 26, query_len=20)
    y, lse = forward(x)
    y[:, :, 7], lse[:, :, 7] = 0, -np.inf
    dq, dk, dv = host_gradients(x, results=(y, lse))
    assert (dq[:, :, 7] == 0).all()
    keep = np.arange(20) != 7
    rest = Problem(*(a[:, :, keep] if n in ("q", "dy") else a for n, a in
                     zip(Problem._fields[:4], x[:4], strict=True)))
    exact = attention_backward(*rest[:4])
    assert_gradients("host", "f32", (dq[:, :, keep], dk, dv), exact)


# Operands in the forms that callers have.


def test_strides_are_honoured():
    x = draw("f32", 30, batch=2, heads=4, kv_heads=2, query_len=70, key_len=90, head_dim=32)
    plain = host_gradients(x)
    bshd = Problem(*(np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in x[:4]))
    backwards = Problem(*(np.ascontiguousarray(a[:, :, ::-1])[:, :, ::-1] for a in x[:4]))
    for other in (bshd, backwards):
        assert all(map(np.array_equal, plain, host_gradients(other)))


def test_an_expanded_dy_and_dlse():
    """dy in the form that autograd gives for a sum: one number, expanded to a tensor."""
    x = draw("f32", 31, query_len=70)
    one = np.ones((1, 1, 1, 16), np.float32)
    expanded = x._replace(dy=np.broadcast_to(one, x.q.shape),
                          dlse=np.broadcast_to(np.float32(0.5), x.q.shape[:3]))
    dense = x._replace(dy=np.ones_like(x.q), dlse=np.full(x.q.shape[:3], np.float32(0.5)))
    assert all(map(np.array_equal, host_gradients(expanded), host_gradients(dense)))


def test_outputs_may_be_strided_and_nothing_beside_them_is_touched():
    x = draw("f32", 32, query_len=70, head_dim=20)
    plain = host_gradients(x)
    y, lse = forward(x)
    plan = bk.FlashSdpaBackwardPlan.select(descriptor(x), HOST)
    wide = [np.full((1, 70, 2, 23), 7, np.float32) for _ in range(3)]
    views = [a.swapaxes(1, 2)[..., 2:22] for a in wide]
    plan.run(HOST, bk.FlashSdpaBackwardArgs(
        q=x.q, k=x.k, v=x.v, y=y, dy=x.dy, lse=lse, dq=views[0], dk=views[1], dv=views[2],
        scratch=np.empty(plan.scratch_bytes, np.uint8)))  # fmt: skip
    for a, view, expected in zip(wide, views, plain, strict=True):
        assert np.array_equal(view, expected)
        view[:] = 7
        assert (a == 7).all()


# Determinism.


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_bits_do_not_depend_on_the_number_of_threads(dtype):
    """With few heads there are two passes over the pairs, with many heads one."""
    x = draw(dtype, 40, heads=4, kv_heads=2, query_len=300, key_len=280, head_dim=32, dlse=True)
    before = _info.host_info()["threads"]
    try:
        found = []
        for threads in (1, 2, 3, 8):
            _info.set_host_threads(threads)
            found += [host_gradients(x, is_causal=True) for _ in range(3)]
    finally:
        _info.set_host_threads(before)
    for other in found[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found[0], other, strict=True))


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from helpers.gradients import draw, host_gradients
from baracuda_kernels._core import _info
from baracuda_kernels.reference import attention_backward
from baracuda_kernels.testing import assert_gradients
print(_info.host_info()["isa"])
for dtype in ("f16", "bf16", "f32", "f64"):
    for head_dim in (17, 64):
        x = draw(dtype, 1, heads=2, kv_heads=1, query_len=150, key_len=130, head_dim=head_dim)
        exact = attention_backward(*x[:4], is_causal=True)
        assert_gradients("host", dtype, host_gradients(x, is_causal=True), exact)
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_is_right(isa):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, Path(__file__).parents[1]], capture_output=True, text=True,
        env={**os.environ, "BARACUDA_HOST_ISA": isa}, check=False)  # fmt: skip
    # The best instruction set of a CPU without AVX2.
    assert done.returncode == 0 and done.stdout.split() in ([isa], ["baseline"]), done


def test_accumulators_of_outputs_are_the_unrounded_gradients():
    x = draw("bf16", 41, heads=4, kv_heads=1, query_len=70)
    exact = attention_backward(*x[:4])
    rounded, wide = host_gradients(x), host_gradients(x, wide=True)
    assert wide[1].dtype == np.float32
    for a, b in zip(rounded[1:], wide[1:], strict=True):
        assert np.array_equal(a, b.astype(a.dtype))
    # For dv only the inputs have been rounded.
    assert error_of(wide[2], exact[2])["relative"] < 1e-6
