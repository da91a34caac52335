"""Views of any shape, strides and address: taken with the right bounds, or refused by a typed error."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

import baracuda_kernels as bk

SIZES = {"U8": 1, "F16": 2, "F32": 4, "F64": 8}
sizes = st.one_of(st.integers(0, 5), st.integers(0, 2**63 - 1), st.integers(-3, 2**70),
                  st.sampled_from([2**31, 2**32, 2**61, 2**62, 2**63 - 1, 2**63]))
steps = st.one_of(st.integers(-9, 9), st.integers(-(2**63), 2**63),
                  st.sampled_from([2**60, 2**61, -(2**61), -(2**63), 2**63 - 1]))
dimensions = st.lists(st.tuples(sizes, steps), min_size=0, max_size=5)
junk = st.one_of(st.none(), st.floats(), st.text(max_size=3), st.booleans(), st.binary(max_size=3),
                 st.lists(st.integers(), max_size=2), st.integers(-(2**70), 2**70))


def bounds(address, dims, itemsize):
    """[low, high) in bytes, or None where no memory has them."""
    if any(not 0 <= n < 2**63 for n, _ in dims) or any(not -(2**63) < s < 2**63 for _, s in dims):
        return None
    if any(n == 0 for n, _ in dims):
        return address, address
    if np.prod([n for n, _ in dims], dtype=object) * itemsize >= 2**63:
        return None
    low = sum(min(0, s * (n - 1)) for n, s in dims) * itemsize
    high = (sum(max(0, s * (n - 1)) for n, s in dims) + 1) * itemsize
    if low < -(2**63) or high >= 2**63 or address + low < 0 or address + high >= 2**64:
        return None
    return address + low, address + high


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2**64 - 1), dimensions, st.sampled_from(list(SIZES)))
@example(2**63, [(2, 2**61), (4, 1)], "F64")
@example(2**63, [(2**61, 1)], "F64")
@example(4096, [(2, -(2**62))], "U8")
def test_views_over_addresses(address, dims, element):
    shape, strides = [n for n, _ in dims], [s for _, s in dims]
    expected = bounds(address, dims, SIZES[element])
    try:
        view = bk.TensorRef(address, shape, strides, element, device=-1)
    except bk.InvalidProblemError as error:
        assert expected is None and str(error).startswith("tensor")
        return
    assert expected is not None
    assert view.shape == tuple(shape) and view.strides == tuple(strides)
    if 0 not in shape:
        assert view.nbytes == np.prod(shape, dtype=object) * SIZES[element]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 64), dimensions, st.sampled_from(list(SIZES)))
def test_views_over_buffers_stay_within(count, dims, element):
    memory = np.zeros(count, np.uint8)
    shape, strides = [n for n, _ in dims], [s for _, s in dims]
    expected = bounds(memory.ctypes.data, dims, SIZES[element])
    try:
        bk.TensorRef(memory, shape, strides, element)
    except bk.InvalidProblemError:
        within = expected is not None and memory.ctypes.data <= expected[0] \
            and expected[1] <= memory.ctypes.data + count
        assert not within
        return
    assert memory.ctypes.data <= expected[0] and expected[1] <= memory.ctypes.data + count


@settings(max_examples=200, deadline=None)
@given(junk, junk, junk, junk)
def test_junk_is_a_typed_error(shape, strides, element, device):
    memory = np.zeros(64, np.uint8)
    for source in (memory, 4096):
        for view in (bk.TensorRef, bk.TensorMut):
            try:
                view(source, shape, strides, element, device=device)
            except bk.BaracudaError:
                pass


@settings(max_examples=200, deadline=None)
@given(st.lists(junk, min_size=5, max_size=5), junk, junk, junk)
def test_descriptors_of_junk(extents, scale, is_causal, element):
    for cls in (bk.RingAttentionDescriptor, bk.FlashSdpaDescriptor):
        try:
            cls(*extents, scale, is_causal, element).validate()
        except bk.BaracudaError:
            pass


@settings(max_examples=100, deadline=None)
@given(junk, junk, junk)
@example(1, 2**31, 1.0)
@example(2, [0, True], 1.0)
def test_local_rings_of_junk(world_size, device, timeout):
    if isinstance(world_size, int) and world_size > 64:
        world_size = 64
    try:
        bk.LocalCommunicator.ring(world_size, device=device, timeout=timeout)
    except bk.BaracudaError:
        pass
