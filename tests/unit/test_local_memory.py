"""What `run_local_ring` stages for a GPU from NumPy arrays; cuda.core's buffers lie on the host."""

import contextlib
import ctypes

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels import _local_memory, _prepared_ring
from baracuda_kernels.testing import assert_close, attention, numpy_qkv


class Buffer:
    """The part of `cuda.core.Buffer` that CudaCoreMemory uses, over host memory."""

    def __init__(self, address, nbytes, owner=None):
        self.handle, self.nbytes, self.owner = address, nbytes, owner

    @classmethod
    def from_handle(cls, address, nbytes):
        return cls(address, nbytes)

    def copy_from(self, other, stream):
        ctypes.memmove(self.handle, other.handle, min(self.nbytes, other.nbytes))


class Device:
    device_id = -1

    def allocate(self, nbytes, stream):
        owner = (ctypes.c_char * nbytes)()
        return Buffer(ctypes.addressof(owner), nbytes, owner)


class Stream:
    def sync(self):
        pass


class StagedOnTheHost(_local_memory.CudaCoreMemory):
    def __init__(self):
        self._buffer_type, self._device, self._stream = Buffer, Device(), Stream()
        self._current = contextlib.nullcontext
        self.ring_device, self.stream = "host", bk.Stream.host()

    def operand(self, array):
        element = bk.ElementKind.of_dtype(array.dtype)
        return bk.TensorMut(int(array.buffer.handle), array.shape, element=element)


@pytest.fixture(params=["host", "cuda"])
def memory(request, monkeypatch):
    if request.param == "cuda":
        monkeypatch.setattr(_prepared_ring, "memory_for", lambda x, device: StagedOnTheHost())


def swapped(*arrays):
    return [x.astype(x.dtype.newbyteorder("S")) for x in arrays]


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_bytes_in_another_order_are_refused_wherever_they_go(dtype, memory):
    q, k, v = numpy_qkv("normal", dtype, 1, heads=2, query_len=32, head_dim=16)
    y, lse = bk.run_local_ring(q, k, v, 4)
    exact_y, exact_lse = attention(q, k, v)
    assert_close("host", dtype, y, exact_y, lse, exact_lse)
    with pytest.raises(bk.InvalidProblemError, match="q: got dtype .*, must be .* byte order"):
        bk.run_local_ring(*swapped(q, k, v), 4)
    for name, arrays, more in (
        ("k", (q, *swapped(k), v), {}),
        ("v", (q, k, *swapped(v)), {}),
        ("dy", (q, k, v), {"dy": swapped(q)[0]}),
        ("dlse", (q, k, v), {"dy": q, "dlse": swapped(lse)[0]}),
    ):
        with pytest.raises(bk.InvalidProblemError, match=f"^{name}: got ndarray of "):
            bk.run_local_ring(*arrays, 4, **more)
    native = [x.astype(x.dtype.newbyteorder("=")) for x in swapped(q, k, v)]
    assert np.array_equal(bk.run_local_ring(*native, 4)[0], y)
