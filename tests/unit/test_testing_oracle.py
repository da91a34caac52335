"""The oracle on PyTorch's tensors is the oracle on NumPy arrays."""

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels import testing

torch = pytest.importorskip("torch", reason="capability: torch is installed")


def qkv():
    return testing.numpy_qkv("normal", "f32", 0, heads=4, kv_heads=2, query_len=32, key_len=24,
                             head_dim=16)  # fmt: skip


def both(call, *arrays, **options):
    """The results by NumPy and by PyTorch, as NumPy arrays."""
    arrays = [np.asarray(x) for x in arrays]
    with np.errstate(all="ignore"):
        by_numpy = call(*arrays, **options)
    tensors = {n: torch.from_numpy(x) if n == "dlse" else x for n, x in options.items()}
    by_torch = call(*map(torch.from_numpy, arrays), **tensors)
    return by_numpy, [x.numpy() for x in by_torch]


def assert_same(by_numpy, by_torch):
    for one, other in zip(by_numpy, by_torch, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-12)


POSITIONS = {
    "none": {},
    "causal": {"is_causal": True},
    "rows before all keys": {"is_causal": True, "q_positions": np.arange(32) - 3},
    "mixed": {"is_causal": True, "q_positions": np.random.default_rng(0).permutation(32),
              "k_positions": np.random.default_rng(1).permutation(24) * 2},
}  # fmt: skip


@pytest.mark.parametrize("options", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("operand", ["q", "k", "v"])
def test_a_value_reaches_the_same_rows(operand, value, options):
    given = dict(zip("qkv", qkv(), strict=True))
    given[operand][0, 1, 20, 3] = value
    given[operand][0, 0, 5] = value
    by_numpy, by_torch = both(testing.attention, *given.values(), **options)
    assert_same(by_numpy, by_torch)
    if operand == "v" and "is_causal" in options:
        assert np.isfinite(by_torch[0]).any(), "a row that does not see the key"


@pytest.mark.parametrize("options", POSITIONS.values(), ids=POSITIONS)
def test_gradients_are_the_same(options):
    q, k, v = qkv()
    random = np.random.default_rng(2)
    dy, dlse = random.standard_normal(q.shape), random.standard_normal(q.shape[:3])
    assert_same(*both(testing.attention_backward, q, k, v, dy, dlse=dlse, **options))


def positions(call, **options):
    q, k, v = map(torch.from_numpy, qkv())
    return call(q, k, v, *([q] if call is testing.attention_backward else []), is_causal=True,
                **options)  # fmt: skip


def backward(name, change, **options):
    q, k, v = map(torch.from_numpy, qkv())
    given = {"q": q, "k": k, "v": v, "dy": q.clone(), **options}
    given[name] = change(given[name])
    return testing.attention_backward(**given)


def with_nan(x):
    x = x.clone()
    x.view(-1)[0] = torch.nan
    return x


DLSE = torch.zeros(1, 4, 32)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *((lambda call=call, given=given: positions(call, **given), f"{next(iter(given))}: got shape")
          for call in (testing.attention, testing.attention_backward)
          for given in ({"q_positions": [3]}, {"k_positions": torch.arange(32)},
                        {"q_positions": torch.ones(32)})),
        (lambda: backward("dy", lambda x: x[:, :, :8]), "dy: got shape"),
        (lambda: backward("dlse", lambda x: x, dlse=torch.ones(1, 4, 64)), "dlse: got shape"),
        (lambda: backward("dlse", lambda x: x[..., None], dlse=DLSE), "dlse: got shape"),
        *((lambda name=name: backward(name, with_nan, dlse=DLSE), f"{name}: got a tensor with NaN")
          for name in ("q", "k", "v", "dy", "dlse")),
        (lambda: backward("k", lambda x: x.numpy()), "k: got ndarray, must be a tensor"),
        (lambda: testing.attention(torch.from_numpy(qkv()[0]), *qkv()[1:]), "k: got ndarray"),
        (lambda: backward("v", lambda x: x.to("meta")), "v: got Tensor on meta, must be a tensor"),
        *((lambda name=name: backward(name, lambda x: x * 1j, dlse=DLSE), f"{name}: got torch.complex")
          for name in ("q", "k", "v", "dy", "dlse")),
        *((lambda call=call: positions(call, scale="1"), "scale: got '1', must be a number")
          for call in (testing.attention, testing.attention_backward)),
        (lambda: backward("q", lambda x: x, is_causal="no"), "is_causal: got 'no', must be a bool"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_typed_error(call, says):
    with pytest.raises(bk.InvalidProblemError, match=says):
        call()


def test_rows_without_elements():
    x = torch.zeros(1, 2, 4, 0)
    for found, exact in zip(testing.attention(x, x, x), testing.attention(*[x.numpy()] * 3)):
        assert np.array_equal(found.numpy(), exact)
    assert all(g.shape == x.shape for g in testing.attention_backward(x, x, x, x))


def test_a_row_whose_scores_are_all_minus_infinity_is_not_one_without_keys():
    """The kernels' answers: NaN where keys are seen, -inf where none are."""
    q, k, v = qkv()
    k[..., 1:] = 0.0
    k[..., 0] = np.abs(k[..., 0]) + 1.0
    q[:, :, 5], q[:, :, 5, 0] = 0.0, -np.inf
    for lse in (testing.attention(q, k, v)[1],
                testing.attention(*map(torch.from_numpy, (q, k, v)))[1].numpy()):
        assert np.isnan(lse[:, :, 5]).all() and np.isfinite(np.delete(lse, 5, 2)).all()
    y, lse = bk.run_local_ring(q, k, v, 1)
    exact = testing.attention(q, k, v)
    testing.assert_close("host", "f32", np.delete(y, 5, 2), np.delete(exact[0], 5, 2))
    testing._tolerances._check_lse("", testing.TOLERANCES["host", "f32"], lse, exact[1], 8.0)


@pytest.mark.parametrize("dtype, head_dim", [("f64", 1024), ("f32", 1000)])
def test_rows_of_equal_numbers_are_within_the_tolerance(dtype, head_dim):
    for seed in range(20):
        random = np.random.default_rng(seed)
        q, k = (np.full((1, 1, 4, head_dim), 1.3 * random.standard_normal(), testing.NUMPY_DTYPES[dtype])
                for _ in range(2))  # fmt: skip
        y, lse = bk.run_local_ring(q, k, np.ones_like(k), 1, scale=3.0)
        exact = testing.attention(q, k, np.ones_like(k), scale=3.0)
        score = testing.max_score(q, k, 3.0)
        testing.assert_close("host", dtype, y, exact[0], lse, exact[1], score=score)
