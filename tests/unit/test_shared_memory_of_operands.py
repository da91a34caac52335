"""Which outputs share memory with an input: exact for interleaved views, against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_kernels as bk

MEMORY = 4096  # float32 elements


def refused(q, y):
    """Whether FlashSdpa says that y overlaps q."""
    b, h, s, d = q.shape
    plan = bk.FlashSdpaPlan.select(
        bk.Stream.host(), bk.FlashSdpaDescriptor(b, h, s, 1, d, element="F32", num_kv_heads=h))
    k, v = np.zeros((2, b, h, 1, d), np.float32)
    try:
        plan.can_implement(bk.FlashSdpaArgs(q=q, k=k, v=v, y=y))
    except bk.InvalidProblemError as error:
        assert "overlap" in str(error), error
        return True
    return False


def test_slices_of_a_packed_projection():
    packed = np.zeros((2, 6, 12, 8), np.float32).transpose(0, 2, 1, 3)  # [B, heads, S, D]
    q, _k, _v, y = np.split(packed, [4, 6, 8], 1)
    assert not refused(q, y)
    assert refused(q, packed[:, 3:7]) and refused(q, q)
    last = np.zeros((1, 2, 6, 32), np.float32)
    assert not refused(last[..., :8], last[..., 8:16])
    assert refused(last[..., :8], last[..., 7:15])


def test_every_other_row():
    rows = np.zeros((1, 2, 12, 8), np.float32)
    assert not refused(rows[:, :, ::2], rows[:, :, 1::2])
    halves = np.zeros((1, 4, 12, 8), np.float32)
    assert not refused(halves[:, :2], halves[:, 2:])
    assert not refused(halves[:, ::2], halves[:, 1::2])


@st.composite
def view(draw, shape):
    strides = [draw(st.integers(0, 40)) for _ in shape[:3]] + [1]
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return draw(st.integers(0, MEMORY // 16)), strides, span


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_against_brute_force(data):
    memory = np.zeros(MEMORY, np.float32)
    shape = tuple(data.draw(st.integers(1, 4)) for _ in range(4))
    views, addresses = [], []
    for _ in range(2):
        offset, strides, span = data.draw(view(shape))
        if offset + span >= MEMORY:
            return
        views.append(np.lib.stride_tricks.as_strided(
            memory[offset:], shape, [4 * s for s in strides]))
        addresses.append([offset + sum(i * s for i, s in zip(index, strides, strict=True))
                          for index in itertools.product(*map(range, shape))])
    q, y = addresses
    # An output must not overlap itself either.
    overlaps = bool(set(q) & set(y)) or len(set(y)) < len(y)
    got = refused(*views)
    assert got or not overlaps, "an overlap was missed"
    if len(set(y)) == len(y) and not _steps_over(views[1]):
        return  # the check of y alone is a sufficient one
    assert got == overlaps


def _steps_over(y):
    span = 1
    for n, s in sorted(((n, abs(s) // 4) for n, s in zip(y.shape, y.strides, strict=True) if n > 1),
                       key=lambda p: p[1]):
        if s < span:
            return False
        span += s * (n - 1)
    return True


@pytest.mark.parametrize("shift", [-8, -3, 0, 3, 8])
def test_shifted_rows(shift):
    memory = np.zeros(4096, np.float32)
    q = memory[1000:1064].reshape(1, 1, 8, 8)
    y = memory[1000 + shift : 1064 + shift].reshape(1, 1, 8, 8)
    assert refused(q, y)
