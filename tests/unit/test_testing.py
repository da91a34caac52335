"""`baracuda_kernels.testing`: it finds what is wrong, with and without -O, and needs no pytest."""

import subprocess
import sys

import numpy as np
import pytest
from helpers.pages import run_page

import baracuda_kernels as bk
from baracuda_kernels import testing

SHAPE = {"heads": 8, "kv_heads": 2, "query_len": 256, "head_dim": 64}


def answer(dtype="bf16"):
    q, k, v = testing.numpy_qkv("normal", dtype, 0, **SHAPE)
    y, lse = testing.attention(q, k, v)
    return y.astype(testing.NUMPY_DTYPES[dtype]), y, lse


def test_the_page_runs_as_written(tmp_path):
    assert "found: host" in run_page("testing.md", tmp_path)


def test_a_rounded_answer_passes():
    y, exact, lse = answer()
    testing.assert_close("sm90a", "bf16", y, exact, lse.astype(np.float32), lse)
    testing.assert_close("sm90a", "bf16", y, exact)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y, lse: y.__setitem__((0, 0, 3, 5), np.nan), "NaN in y"),
        (lambda y, lse: y.__imul__(1.1), "relative error of y"),
        (lambda y, lse: lse.__setitem__((0, 1, 2), -np.inf), "1 rows differ in whether"),
        (lambda y, lse: lse.__setitem__((0, 1, 2), 9.0), "lse off by"),
    ],
)
def test_a_wrong_answer_is_found(change, says):
    y, exact, lse = answer()
    y, found = y.astype(np.float32), lse.copy()
    change(y, found)
    with pytest.raises(AssertionError, match=says):
        testing.assert_close("sm80", "bf16", y, exact, found, lse)


def test_a_second_rounding_is_found_where_there_are_enough_elements():
    y, exact, _ = answer()
    step = np.abs(exact) * 2.0**-8
    worse = exact + np.random.default_rng(0).uniform(-1, 1, exact.shape) * step
    assert testing.rms_over_rounding(y, exact, "bf16") == pytest.approx(1)
    with pytest.raises(AssertionError, match="rounding the exact answer"):
        testing.assert_close("host", "bf16", worse, exact)


@pytest.mark.parametrize(("family", "dtype"), testing.TOLERANCES)
@pytest.mark.parametrize("change", ["sign", "row"])
def test_one_wrong_element_of_a_large_answer_is_found(family, dtype, change):
    """The norm of the error is below the tolerance; one element's error is not."""
    exact = np.random.default_rng(0).standard_normal((1, 8, 512, 128))
    y = exact.astype(testing.NUMPY_DTYPES[dtype])
    testing.assert_close(family, dtype, y, exact)
    testing.assert_gradients(family, dtype, [y] * 3, [exact] * 3)
    if change == "sign":
        y[0, 0, 7, 5] *= -1
    else:
        y[0, 0, 7] = y[0, 0, 8]
    with pytest.raises(AssertionError, match="one element is off by|relative error of y"):
        testing.assert_close(family, dtype, y, exact)
    with pytest.raises(AssertionError, match="dv: one element is off by|relative error of dv"):
        testing.assert_gradients(family, dtype, [exact, exact, y], [exact] * 3)


@pytest.mark.parametrize("family", ["host", "simt", "sm80", "sm90a"])
@pytest.mark.parametrize("with_lse", [True, False])
def test_rows_without_keys_must_be_zero(family, with_lse):
    exact = np.random.default_rng(0).standard_normal((1, 2, 32, 16))
    exact[:, :, :3] = 0.0
    lse = np.where((exact == 0).all(-1), -np.inf, 1.0)
    more = (lse, lse) if with_lse else ()
    y = exact.astype(np.float16)
    testing.assert_close(family, "f16", y, exact, *more)
    y[0, 1, 2, 3] = 1e-3
    with pytest.raises(AssertionError, match="1 rows without keys are not 0"):
        testing.assert_close(family, "f16", y, exact, *more)


def test_a_wrong_gradient_is_found():
    q, k, v = testing.numpy_qkv("normal", "f32", 0, heads=2, query_len=24, head_dim=16)
    exact = testing.attention_backward(q, k, v, q)
    testing.assert_gradients("host", "f32", exact, exact)
    for at, name in enumerate(("dq", "dk", "dv")):
        wrong = [x.copy() for x in exact]
        wrong[at][0, 0, 1] *= 1.01
        with pytest.raises(AssertionError, match=f"relative error of {name}"):
            testing.assert_gradients("host", "f32", wrong, exact)
        wrong[at][0, 0, 1, 2] = np.inf
        with pytest.raises(AssertionError, match=f"{name} is not finite"):
            testing.assert_gradients("host", "f32", wrong, exact)


ROWS = np.zeros((1, 1, 4, 8))


@pytest.mark.parametrize(
    "call",
    [
        lambda: testing.numpy_qkv("gamma", "f32", 0, heads=1, query_len=1, head_dim=1),
        lambda: testing.numpy_qkv("normal", "f8", 0, heads=1, query_len=1, head_dim=1),
        lambda: testing.preference("sm70", "bf16"),
        lambda: testing.preference("simt-deterministic", "bf16"),
        lambda: testing.preference("sm80", "f32"),
        lambda: testing.assert_close("sm80", "f32", np.zeros(1), np.zeros(1)),
        lambda: testing.rms_over_rounding(np.zeros(1), np.zeros(1), "f8"),
        lambda: testing.assert_gradients("host", "f32", [np.zeros(1)] * 2, [np.zeros(1)] * 3),
        # An lse to compare with is missing, or would be broadcast.
        *(lambda lse=lse: testing.assert_close("host", "f32", ROWS, ROWS, np.zeros((1, 1, 4)), lse)
          for lse in (None, np.zeros(4), np.zeros((1, 1, 1)))),
    ],
)
def test_what_there_is_not_is_a_typed_error(call):
    with pytest.raises(bk.InvalidProblemError, match="got .*, must be "):
        call()


def test_asserts_stay_without_pytest_and_with_optimisation():
    script = (
        "import sys; sys.modules['pytest'] = None\n"
        "from baracuda_kernels import testing\n"
        "assert False\n"  # -O is on
        "try: testing.assert_close('host', 'f32', [[[[1.0]]]], [[[[2.0]]]])\n"
        "except AssertionError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-O", "-c", script], check=True, capture_output=True, text=True)
    assert "relative error of y" in said.stdout
