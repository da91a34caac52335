"""The float64 oracle against the formula, element by element."""

import math

import ml_dtypes
import numpy as np
import pytest
from helpers.gradients import draw
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_kernels as bk
from baracuda_kernels.reference import attention, attention_backward, error_of


def brute_force(q, k, v, scale, visible):
    """The definition in Python floats with exact sums."""
    batch, heads, query_len, head_dim = q.shape
    group = heads // k.shape[1]
    y = np.zeros(q.shape)
    lse = np.full(q.shape[:3], -math.inf)
    for b in range(batch):
        for h in range(heads):
            for i in range(query_len):
                keys = [j for j in range(k.shape[2]) if visible(i, j)]
                if not keys:
                    continue
                row = [
                    scale
                    * math.fsum(float(a) * float(c) for a, c in zip(q[b, h, i], kj, strict=True))
                    for kj in (k[b, h // group, j] for j in keys)
                ]
                top = max(row)
                weights = [math.exp(s - top) for s in row]
                total = math.fsum(weights)
                lse[b, h, i] = top + math.log(total)
                for d in range(head_dim):
                    products = (
                        w * float(v[b, h // group, j, d])
                        for w, j in zip(weights, keys, strict=True)
                    )
                    y[b, h, i, d] = math.fsum(products) / total
    return y, lse


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    query_len=st.integers(0, 6),
    key_len=st.integers(0, 6),
    head_dim=st.integers(1, 5),
    scale=st.sampled_from([-0.1, 0.0, None, 1.0, 10.0]),
    is_causal=st.booleans(),
    block=st.sampled_from([1, 7, 1 << 22]),
)
def test_against_brute_force(
    seed, batch, kv_heads, group, query_len, key_len, head_dim, scale, is_causal, block
):
    random = np.random.default_rng(seed)
    q = random.standard_normal((batch, kv_heads * group, query_len, head_dim))
    k, v = random.standard_normal((2, batch, kv_heads, key_len, head_dim))
    q_pos, k_pos = random.integers(0, 8, query_len), random.integers(0, 8, key_len)
    y, lse = attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=is_causal,
        q_positions=q_pos,
        k_positions=k_pos,
        block_scores=block,
    )
    factor = 1 / math.sqrt(head_dim) if scale is None else scale
    exact_y, exact_lse = brute_force(
        q, k, v, factor, lambda i, j: not is_causal or k_pos[j] <= q_pos[i]
    )
    np.testing.assert_allclose(y, exact_y, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-12, atol=1e-13)


def test_default_positions_are_top_left():
    q, k, v = np.ones((1, 1, 3, 2)), np.ones((1, 1, 5, 2)), np.arange(10.0).reshape(1, 1, 5, 2)
    y, lse = attention(q, k, v, scale=0.0, is_causal=True)
    assert y[0, 0, :, 0].tolist() == [0.0, 1.0, 2.0]
    np.testing.assert_allclose(lse[0, 0], np.log([1, 2, 3]))


def test_rows_that_see_nothing():
    q, k, v = np.ones((3, 1, 2, 3, 4))
    y, lse = attention(q, k, v, is_causal=True, k_positions=np.arange(3) + 1)
    assert (y[..., 0, :] == 0).all() and np.isneginf(lse[..., 0]).all()
    assert np.isfinite(lse[..., 1:]).all()


def test_rows_without_columns_see_keys_of_score_zero():
    x = np.zeros((1, 1, 3, 0))
    y, lse = attention(x, x, x, is_causal=True)
    assert y.shape == x.shape and np.allclose(lse, np.log([1, 2, 3]))


def test_nan_reaches_exactly_the_rows_that_see_it():
    random = np.random.default_rng(0)
    q, k, v = random.standard_normal((3, 1, 1, 6, 4))
    for x, name in ((k, "k"), (v, "v")):
        given = {"q": q, "k": k, "v": v, name: x.copy()}
        given[name][0, 0, 3] = np.nan
        y, _ = attention(**given, is_causal=True)
        assert np.isnan(y[0, 0, 3:]).all() and np.isfinite(y[0, 0, :3]).all()


def test_16_bit_operands_are_taken_as_they_are():
    random = np.random.default_rng(1)
    q, k, v = random.standard_normal((3, 1, 2, 5, 8)).astype(ml_dtypes.bfloat16)
    y, lse = attention(q, k, v)
    same_y, same_lse = attention(*(x.astype(np.float64) for x in (q, k, v)))
    assert np.array_equal(y, same_y) and np.array_equal(lse, same_lse)


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)),
        ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 5, 4)),
        ((1, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4)),
        ((1, 2, 3, 4), (1, 2, 3, 8), (1, 2, 3, 8)),
        ((1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)),
    ],
)
def test_shapes_that_do_not_belong_together(q, k, v):
    with pytest.raises(bk.errors.InvalidProblemError):
        attention(np.zeros(q), np.zeros(k), np.zeros(v))


def test_positions_must_fit():
    x = np.zeros((1, 1, 3, 4))
    for wrong in (np.arange(4), np.arange(3.0)):
        with pytest.raises(bk.errors.InvalidProblemError, match="q_positions"):
            attention(x, x, x, is_causal=True, q_positions=wrong)


X = np.ones((1, 1, 3, 4))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: attention(X * 1j, X, X), "q: got dtype complex128, must be of real numbers"),
        (lambda: attention(X, X, X.astype(str)), "v: got dtype <U32, must be of real numbers"),
        (lambda: attention_backward(X, X, X, X * 1j), "dy: got dtype complex128, must be"),
        (lambda: attention_backward(X, X, X, X, dlse=X[..., 0] * 1j), "dlse: got dtype complex128"),
        (lambda: error_of(X + 1j, X), "got: got dtype complex128, must be of real numbers"),
        (lambda: attention(X, X, X, scale="1"), "scale: got '1', must be a number"),
        (lambda: attention(X, X, X, scale=np.ones(3)), "scale: got array.*, must be a number"),
        (lambda: attention(X, X, X, scale=np.complex64(0.5 + 2j)), "scale: got .*, must be a number"),
        (lambda: attention(X, X, X, is_causal="no"), "is_causal: got 'no', must be a bool"),
        (lambda: attention_backward(X, X, X, X, is_causal=None), "is_causal: got None, must be"),
        (lambda: attention(X, X, X, is_causal=True, q_positions=np.full(3, 2**63, np.uint64)),
         "q_positions: got 9223372036854775808, must be integers below 2"),
    ],
)  # fmt: skip
def test_what_would_be_another_answer_is_refused(call, says):
    with pytest.raises(bk.errors.InvalidProblemError, match=says):
        call()


def test_error_of():
    exact = np.array([3.0, -np.inf, 4.0])
    assert error_of(exact, exact) == {"rms": 0.0, "max": 0.0, "relative": 0.0}
    off = error_of(np.array([3.0, -np.inf, 4.5]), exact)
    assert off["max"] == 0.5 and off["relative"] == pytest.approx(0.1)
    for wrong in (np.nan, np.inf):
        assert error_of(np.array([3.0, wrong, 4.0]), exact)["max"] == np.inf
    with pytest.raises(bk.errors.InvalidProblemError):
        error_of(np.zeros(2), exact)


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_are_the_slopes_of_the_forward(is_causal):
    """Central differences in random directions."""
    x = draw("f64", 42, heads=2, kv_heads=1, query_len=9, key_len=7, head_dim=5, dlse=True)
    rng = np.random.default_rng(0)

    def loss(q, k, v):
        y, lse = attention(q, k, v, is_causal=is_causal)
        return (y * x.dy).sum() + (lse * x.dlse).sum()

    gradients = attention_backward(*x[:4], dlse=x.dlse, is_causal=is_causal)
    for i, gradient in enumerate(gradients):
        for _ in range(5):
            direction = rng.standard_normal(gradient.shape)
            h = 1e-5
            up, down = list(x[:3]), list(x[:3])
            up[i], down[i] = up[i] + h * direction, down[i] - h * direction
            slope = (loss(*up) - loss(*down)) / (2 * h)
            assert abs(slope - (gradient * direction).sum()) < 1e-8 * max(1, abs(slope))


def test_gradients_of_blocks_and_of_shapes_that_do_not_fit():
    x = draw("f64", 0, heads=4, kv_heads=2, query_len=20, key_len=13, dlse=True)
    whole = attention_backward(*x[:4], dlse=x.dlse, is_causal=True)
    blocks = attention_backward(*x[:4], dlse=x.dlse, is_causal=True, block_scores=30)
    for a, b in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)
    # Positions in another order are rows and keys in another order.
    rows, keys = np.random.default_rng(0).permutation(20), np.random.default_rng(1).permutation(13)
    moved = attention_backward(
        x.q[:, :, rows], x.k[:, :, keys], x.v[:, :, keys], x.dy[:, :, rows], dlse=x.dlse[:, :, rows],
        is_causal=True, q_positions=rows, k_positions=keys)  # fmt: skip
    for a, b, at in zip(whole, moved, (rows, keys, keys), strict=True):
        np.testing.assert_allclose(a[:, :, at], b, atol=1e-13)
    with pytest.raises(bk.InvalidProblemError, match="dy: got shape"):
        attention_backward(x.q, x.k, x.v, x.dy[:, :, :5])
    with pytest.raises(bk.InvalidProblemError, match="dlse: got shape"):
        attention_backward(*x[:4], dlse=x.dlse[..., None])


def test_the_exact_result_is_taken_in_float64():
    """Squares of 16- and 32-bit numbers overflow, and an error over infinity is none."""
    assert error_of(np.zeros(4), np.full(4, 300, np.float16))["relative"] == 1.0
    assert error_of(np.zeros(4), np.full(4, 1e20, np.float32))["relative"] == 1.0
    assert error_of(np.zeros(4), np.full(4, 1e200))["relative"] == 1.0
    tiny = error_of(np.full(4, 1e-4), np.full(4, 1e-4, np.float16))["relative"]
    assert 0 < tiny < 1e-3
    assert error_of(np.full(4, 1e-200), np.full(4, 2e-200))["relative"] == pytest.approx(0.5)


@pytest.mark.parametrize("value", [1j, "1.5", None, 2.0])
def test_arrays_of_objects_are_refused(value):
    x = np.array([[[[value]]]], dtype=object)
    with pytest.raises(bk.InvalidProblemError, match="q: got dtype object, must be of real numbers"):
        attention(x, x, x)
    with pytest.raises(bk.InvalidProblemError, match="exact: got dtype object, must be of real"):
        error_of(np.zeros((1, 1, 1, 1)), x)


def test_structured_arrays_ragged_positions_and_block_sizes_are_refused():
    x = np.zeros((1, 1, 1, 1), [("a", "f4")])
    with pytest.raises(bk.InvalidProblemError, match="q: got dtype .*must be of real numbers"):
        attention(x, x, x)
    ones = np.ones((1, 1, 2, 1))
    with pytest.raises(bk.InvalidProblemError, match=r"q_positions: got \[\[0\], \[1, 2\]\], must be 2"):
        attention(ones, ones, ones, is_causal=True, q_positions=[[0], [1, 2]])
    for wrong in ("a", -5, 0, 1.5):
        with pytest.raises(bk.InvalidProblemError, match="block_scores: got .* must be an integer >= 1"):
            attention(ones, ones, ones, block_scores=wrong)
