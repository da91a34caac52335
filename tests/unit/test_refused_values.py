"""Invalid values are refused by name, before any memory is read."""

import ctypes as ct

import numpy as np
import pytest
from helpers.ring_abi import build_helper

import baracuda_kernels as bk
from baracuda_kernels.testing import attention

HOST = bk.Stream.host()
MEMORY = np.zeros(64, np.float32)
ADDRESS = MEMORY.ctypes.data


def refuse(match, make):
    with pytest.raises(bk.InvalidProblemError, match=match):
        make()


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 4), (2**61, 1)),
        ((2, 4), (2**62, 1)),
        ((2**61,), None),
        ((2**40, 2**40), None),
        ((4, 4), (-(2**61), 1)),
        ((4,), (-(2**60),)),
        ((2**62, 2**62), (0, 0)),
        ((2**63 - 1,), (1,)),
    ],
)
def test_views_that_span_more_than_a_memory(shape, strides):
    refuse("spans more bytes", lambda: bk.TensorRef(ADDRESS, shape, strides, "F64", device=-1))
    buffer = np.zeros(64, np.uint8)
    refuse("tensor", lambda: bk.TensorRef(buffer, shape, strides, "F64"))


def test_what_a_memory_holds_is_still_taken():
    for shape, strides in (((2**50,), None), ((2**40, 2**10), None), ((4,), (-1,)),
                           ((0, 2**62, 2**62), None), ((2**62, 1), (0, 2**62))):
        assert bk.TensorRef(ADDRESS, shape, strides, "U8", device=-1).shape == shape


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: bk.TensorRef(ADDRESS, (2.5, 4), None, "F32", device=-1), "shape: got 2.5"),
        (lambda: bk.TensorRef(ADDRESS, 4, None, "F32", device=-1), "shape 4, must be a sequence"),
        (lambda: bk.TensorRef(ADDRESS, (2, 4), (4.9, 1), "F32", device=-1), "strides: got 4.9"),
        (lambda: bk.TensorRef(ADDRESS, (2, 4), 4, "F32", device=-1), "strides 4, must be"),
        (lambda: bk.TensorRef(ADDRESS, (True, 4), None, "F32", device=-1), "shape: got True"),
        (lambda: bk.TensorRef(ADDRESS, (-1, 4), None, "F32", device=-1), "shape: got -1"),
        (lambda: bk.TensorRef(ADDRESS, (2**63,), None, "F32", device=-1), "shape: got"),
        (lambda: bk.TensorRef(ADDRESS, (2,), None, "F32", device=-0.5), "device: got -0.5"),
        (lambda: bk.TensorRef(ADDRESS, (2,), None, "F32", device=-2), "device: got -2"),
        (lambda: bk.TensorRef(MEMORY, device=0.0), "device: got 0.0"),
        (lambda: bk.DeviceSlice(ADDRESS, 4.7, "F32", device=-1), "shape: got 4.7"),
    ],
)
def test_integers_are_not_rounded(make, match):
    refuse(match, make)


def test_numpy_integers_are_integers():
    view = bk.TensorRef(ADDRESS, (np.int64(2), np.int32(4)), None, "F32", device=np.int64(-1))
    assert view.shape == (2, 4)


class WithBuffer:
    """As Pillow's images: a buffer object in place of an address."""

    def __init__(self, data):
        self.__array_interface__ = {
            "shape": (4,), "typestr": "|u1", "version": 3, "data": data}


@pytest.mark.parametrize("data", [b"abcd", bytearray(4), memoryview(b"abcd"), None, (1.5, False),
                                  [ADDRESS, False], (ADDRESS,)])
def test_a_buffer_is_not_read_as_an_address(data):
    refuse("expose its address", lambda: bk.TensorRef(WithBuffer(data)))


def test_the_interface_is_kept_as_long_as_the_view():
    class Dynamic:
        """Makes its memory in __array_interface__, as some arrays do."""

        @property
        def __array_interface__(self):
            array = np.full(4, 7.0)
            return {**array.__array_interface__, "owner": array}

    view = bk.TensorRef(Dynamic())
    garbage = [np.zeros(4) for _ in range(100)]
    assert np.asarray(view).tolist() == [7.0] * 4 and garbage


class Pipe:
    """Equal to every other one and not hashable, as a dataclass may be."""

    def __init__(self, rank, boxes):
        self.rank, self.world_size, self.boxes = rank, 1, boxes

    def __eq__(self, other):
        return True

    __hash__ = None

    def group_start(self):
        self.boxes.append(self)

    def send(self, buffer, peer, stream): ...

    def recv(self, buffer, peer, stream): ...

    def group_end(self): ...


def test_transports_that_compare_equal_are_two():
    seen = []

    class Hashable(Pipe):
        def __hash__(self):
            return 0

    for kind in (Pipe, Hashable):
        one, other = kind(0, seen), kind(0, seen)
        assert bk.TransportCommunicator.of(one, -1) is bk.TransportCommunicator.of(one, -1)
        assert bk.TransportCommunicator.of(one, -1) is not bk.TransportCommunicator.of(other, -1)


def test_a_transport_that_is_gone_is_forgotten():
    from baracuda_kernels._core import _transport

    before = len(_transport._members)
    one = Pipe(0, [])
    bk.TransportCommunicator.of(one, -1)
    assert len(_transport._members) == before + 1
    del one
    assert len(_transport._members) == before


@pytest.mark.parametrize(("rank", "world_size"), [(0.5, 2), (0, 2.5), (2, 2), (-1, 2), ("0", 1)])
def test_ranks_of_a_transport(rank, world_size):
    pipe = Pipe(0, [])
    pipe.rank, pipe.world_size = rank, world_size
    refuse("transport", lambda: bk.TransportCommunicator(pipe))


def test_positions_that_overflow():
    d = bk.RingAttentionDescriptor(1, 1, 4, 4, 8)
    plan = bk.RingAttentionPlan.select(HOST, d)
    x = [np.zeros((1, 1, 4, 8), np.float32) for _ in range(4)]
    for world_size in (2**31, 2**62, 2**80):
        refuse("world_size", lambda n=world_size: plan.step(
            HOST, q=x[0], k=x[1], v=x[2], y=x[3], rank=n - 1, origin=0, world_size=n))


@pytest.mark.parametrize("heads", [{"num_heads": 0}, {"num_heads": 2, "num_kv_heads": 0}])
def test_no_heads(heads):
    for cls in (bk.RingAttentionDescriptor, bk.FlashSdpaDescriptor):
        d = cls(batch_size=1, query_len=4, key_len=4, head_dim=8, **heads)
        refuse("num_.*heads: got 0", d.validate)


class Echo:
    """A ring of two whose other rank sends any bytes."""

    rank, world_size = 0, 2

    def __init__(self, message):
        self.message = message

    def group_start(self): ...

    def send(self, buffer, peer, stream): ...

    def recv(self, buffer, peer, stream):
        memoryview(buffer).cast("B")[:] = self.message.ljust(len(buffer))[:len(buffer)]

    def group_end(self): ...


@pytest.mark.parametrize("message", [b"\xff\xfe", b"", b"[1, 2]", b"{", b"7", b"null", b"[" * 900,
                                     b'{"scale": "0xnothing"}'])
def test_garbage_from_another_rank(message):
    plan = bk.RingAttentionPlan.select(HOST, bk.RingAttentionDescriptor(1, 1, 4, 4, 8))
    refuse("rank 1", lambda: plan.validate(Echo(message)))


def test_the_callers_floating_point_mode_does_not_matter():
    """With flush-to-zero the rows of the caller would differ from those of the pool."""
    mode = ct.CDLL(build_helper("flush_to_zero.cpp"))
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 8, 256, 32), np.float32) for _ in range(3))
    v *= np.float32(1e-39)
    plan = bk.FlashSdpaPlan.select(HOST, bk.FlashSdpaDescriptor(1, 8, 256, 256, 32))

    def run():
        y = np.empty_like(q)
        plan.run(HOST, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y))
        return y

    exact = run()
    assert np.count_nonzero(exact) > exact.size // 2
    assert np.allclose(exact / 1e-39, attention(q, k, v)[0] / 1e-39, atol=1e-3)
    mode.set_flush_to_zero(1)
    try:
        others = [run() for _ in range(20)]
        flushes = mode.flushes_to_zero()
    finally:
        mode.set_flush_to_zero(0)
    assert flushes and all(np.array_equal(y.view(np.uint32), exact.view(np.uint32)) for y in others)
    bk.FlashSdpaPlan.select(HOST, plan.descriptor)


def test_the_pool_does_not_inherit_the_mode():
    """A thread starts with the mode of the thread that starts it."""
    import os
    import subprocess
    import sys

    script = """
import ctypes as ct, sys
import numpy as np, baracuda_kernels as bk
mode = ct.CDLL(sys.argv[1])
mode.set_flush_to_zero(1)
rng = np.random.default_rng(0)
q, k, v = (rng.integers(-4, 4, (1, 8, 256, 32)).astype(np.float32) for _ in range(3))
v.view(np.uint32)[:] = 100000  # a subnormal number
plan = bk.FlashSdpaPlan.select(bk.Stream.host(), bk.FlashSdpaDescriptor(1, 8, 256, 256, 32))
y = np.empty_like(q)
plan.run(bk.Stream.host(), bk.FlashSdpaArgs(q=q, k=k, v=v, y=y))
mode.set_flush_to_zero(0)
print((y != 0).all())
"""
    result = subprocess.run(
        [sys.executable, "-c", script, build_helper("flush_to_zero.cpp")], check=False,
        capture_output=True, text=True, timeout=60, env={**os.environ, "BARACUDA_NUM_THREADS": "4"})
    assert result.stdout.strip() == "True", result


def test_run_local_ring_timeouts():
    for timeout in (0, -1.0, float("nan"), "1", True):
        refuse("timeout", lambda t=timeout: bk.LocalCommunicator.ring(2, timeout=t))
    for world_size in (0, True, 2.0, "2"):
        refuse("world_size", lambda w=world_size: bk.LocalCommunicator.ring(w))
