"""Gradients on the GPU: what they must be whatever the operands are, exact zeros, small float16.

Identities are of sums that a wrong delta, a wrong mask or a lost tile would break. The products'
multiplicands are rounded to the operands' type, so a sum of gradients is right to a few units.
"""

import math

import pytest
from helpers.cuda_gradients import Call, drawn, gradients
from helpers.gradients import NAMES
from helpers.rings import case

from baracuda_kernels.testing import attention_backward

pytestmark = pytest.mark.gpu

ON_TENSOR_CORES = [
    (f"{family}{order}", dtype, head_dim)
    for family, head_dims in (("sm80", (64, 96, 128, 192, 256)), ("sm90a", (64, 128, 256)))
    for order in ("", "-deterministic") for dtype in ("f16", "bf16") for head_dim in head_dims
]  # fmt: skip
CASES = [("simt", "f32", 64), ("simt", "f64", 128), *ON_TENSOR_CORES]
ROUNDOFF = {"f16": 2.0**-11, "bf16": 2.0**-9, "f32": 2.0**-20, "f64": 2.0**-48}
SHAPE = {"query_len": 300, "key_len": 450}


def sums_match(found, expected, summed, dtype, what):
    """Of vectors [B, H, D], sums of the rows of `summed` [B, H, rows, D] whose errors are apart."""
    error = (found.double() - expected.double()).norm(dim=-1)
    size = summed.double().norm(dim=(-2, -1))
    assert (error <= 8 * ROUNDOFF[dtype] * size).all(), (what, float((error / size).max()))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), CASES)
def test_sums_of_gradients(torch, family, dtype, head_dim, is_causal):
    x = drawn(torch, dtype, 30, heads=2, head_dim=head_dim, dlse=True, **SHAPE)
    dq, dk, dv = gradients(torch, family, dtype, x, wide=True, is_causal=is_causal)
    # The sum of a row's dS is its dlse.
    of_dlse = (x.dlse.double()[..., None] * x.q.double()).sum(2) / math.sqrt(head_dim)
    sums_match(dk.double().sum(2), of_dlse, dk, dtype, "dk")
    assert float((of_dlse.norm(dim=-1) / dk.double().norm(dim=(-2, -1))).min()) > 0.1
    sums_match(dv.double().sum(2), x.dy.double().sum(2), dv, dtype, "dv")
    # Both are the derivative by the scale.
    along_q, along_k = (
        (d.double() * a.double()).sum(dim=(-2, -1)) for d, a in ((dq, x.q), (dk, x.k))
    )
    size = dq.double().norm(dim=(-2, -1)) + dk.double().norm(dim=(-2, -1))
    assert ((along_q - along_k).abs() <= 8 * ROUNDOFF[dtype] * size).all()
    x = x._replace(dlse=None)
    _, dk, _ = gradients(torch, family, dtype, x, wide=True, is_causal=is_causal)
    sums_match(dk.double().sum(2), torch.zeros_like(of_dlse), dk, dtype, "dk without dlse")


@pytest.mark.parametrize(("family", "dtype", "head_dim"), CASES)
def test_equal_values_leave_queries_and_keys_without_gradient(torch, family, dtype, head_dim):
    x = drawn(torch, dtype, 31, head_dim=head_dim, **SHAPE)
    x = x._replace(v=x.v[:, :, :1].expand_as(x.v).contiguous())
    dq, dk, dv = gradients(torch, family, dtype, x, is_causal=True)
    # dP and delta differ only by the rounding of y.
    dq_size, dk_size, q, k, v, dy = (
        float(a.double().norm(dim=-1).max()) for a in (dq, dk, x.q, x.k, x.v, x.dy)
    )
    bound = ROUNDOFF[dtype] * dy * v / math.sqrt(head_dim)
    assert dq_size <= bound * k
    assert dk_size <= bound * q * SHAPE["query_len"]
    assert float(dv.double().abs().max()) > 0.1


@pytest.mark.parametrize(("family", "dtype", "head_dim"), CASES)
def test_grouped_heads_are_the_sum_over_repeated_ones(torch, family, dtype, head_dim):
    x = drawn(torch, dtype, 32, heads=6, kv_heads=2, head_dim=head_dim, **SHAPE)
    grouped = gradients(torch, family, dtype, x, wide=True, is_causal=True)
    repeated = x._replace(k=x.k.repeat_interleave(3, 1), v=x.v.repeat_interleave(3, 1))
    dq, *of_keys = gradients(torch, family, dtype, repeated, wide=True, is_causal=True)
    folded = [g.double().view(1, 2, 3, *g.shape[2:]).sum(2) for g in of_keys]
    for name, one, other in zip(NAMES, grouped, (dq.double(), *folded), strict=True):
        error = float((one.double() - other).norm() / other.norm())
        assert error <= 4 * ROUNDOFF[dtype], (name, error)


@pytest.mark.parametrize(("family", "dtype", "head_dim"), [c for c in CASES if c[1] != "f16"])
def test_a_power_of_two_on_dy_is_one_on_all_gradients(torch, family, dtype, head_dim):
    x = drawn(torch, dtype, 33, head_dim=head_dim, dlse=True, **SHAPE)
    scaled = x._replace(dy=x.dy * 64, dlse=x.dlse * 64)
    one, other = (gradients(torch, family, dtype, problem) for problem in (x, scaled))
    for name, a, b in zip(NAMES, one, other, strict=True):
        if name == "dq" and family in ("sm80", "sm90a"):  # its sums have no fixed order
            assert float((a.double() * 64 - b.double()).norm()) <= ROUNDOFF[dtype] * float(
                b.double().norm()
            )
        else:
            assert torch.equal(a * 64, b), name


@pytest.mark.parametrize(("family", "dtype", "head_dim"), CASES)
def test_no_gradient_in_none_out(torch, family, dtype, head_dim):
    x = drawn(torch, dtype, 34, head_dim=head_dim, **SHAPE)
    for one in gradients(
        torch, family, dtype, x._replace(dy=torch.zeros_like(x.dy)), is_causal=True
    ):
        assert (one == 0).all()


@pytest.mark.parametrize(("family", "dtype", "head_dim"), CASES)
def test_later_keys_leave_earlier_rows_alone(torch, family, dtype, head_dim):
    x = drawn(torch, dtype, 35, query_len=400, head_dim=head_dim)
    later = torch.arange(400, device="cuda") >= 177
    changed = x._replace(k=torch.where(later[:, None], x.k * 3, x.k),
                         v=torch.where(later[:, None], x.v * -5, x.v))  # fmt: skip
    before, after = (
        gradients(torch, family, dtype, problem, is_causal=True)[0] for problem in (x, changed)
    )
    # Sums in any order, rounded once; float16 is shifted by the largest norms of all rows and keys.
    if family in ("sm80", "sm90a") or dtype == "f16":
        error = (before[:, :, :177].double() - after[:, :, :177].double()).abs().max()
        assert float(error) <= 2 * ROUNDOFF[dtype] * float(before.double().abs().max())
    else:
        assert torch.equal(before[:, :, :177], after[:, :, :177])
    assert not torch.equal(before[:, :, 177:], after[:, :, 177:])


@pytest.mark.parametrize("shift", [200.0, -200.0])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), CASES)
def test_large_lse(torch, family, dtype, head_dim, shift):
    """A score that is added to all keys of a row changes only lse, not P and the gradients."""
    x = drawn(torch, dtype, 36, query_len=150, head_dim=head_dim, logits=head_dim**-0.5)
    x.q[..., 0], x.k[..., 0] = 1.0, shift
    call = Call(torch, family, dtype, x, scale=1.0, is_causal=True)
    assert (math.copysign(1, shift) * call.lse > 150).all()
    exact = attention_backward(*x[:4], scale=1.0, is_causal=True)
    bound = 1e-10 if dtype == "f64" else max(16 * ROUNDOFF[dtype], 1e-3)
    for name, one, truth in zip(NAMES, call.run(), exact, strict=True):
        # In the column that all keys share dq is 200 times the sum of dS, which is 0.
        error = (one.double() - truth)[..., 1:].norm() / truth[..., 1:].norm()
        assert float(error) <= bound, name


@pytest.mark.parametrize("head_dim", [24, 64, 128, 256])
@pytest.mark.parametrize("is_causal", [False, True])
def test_float64_is_float64(torch, head_dim, is_causal):
    x = drawn(torch, "f64", 37, heads=4, kv_heads=2, query_len=700, head_dim=head_dim, dlse=True)
    exact = attention_backward(*x[:4], dlse=x.dlse, is_causal=is_causal)
    for one, truth in zip(
        gradients(torch, "simt", "f64", x, is_causal=is_causal), exact, strict=True
    ):
        assert float((one - truth).norm() / truth.norm()) <= 1e-12


@pytest.mark.parametrize("length", [16384, 131072])
def test_small_float16_gradients_are_as_good_as_rounding(torch, length):
    """Weights average 1/length, and dy is small: their products lie below the least float16,
    and the gradients where its numbers are few. All families at once: the truth takes long."""
    x = drawn(torch, "f16", 38, heads=1, query_len=length, head_dim=128)
    x = x._replace(dy=x.dy * 1e-3)
    exact = attention_backward(*x[:4])
    for family in ("sm80", "sm80-deterministic", "sm90a", "sm90a-deterministic"):
        got = gradients(torch, family, "f16", x)
        for name, one, truth in zip(NAMES, got, exact, strict=True):
            with case(family=family, name=name):
                rounded = truth.to(torch.float16).double()
                error, rounding = ((a.double() - truth).norm() for a in (one, rounded))
                assert float(error) <= 1.2 * float(rounding)
