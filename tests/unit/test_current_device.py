"""Whole-array calls on a device that is not the current one. Over stand-ins for CuPy and cuda.core
that know on which device they work; tests/gpu/test_second_device.py has the real ones."""

import sys
import types

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels import _local_memory

CALLERS, OURS = 0, 1


@pytest.fixture
def current():
    """The ordinal of the current device, in a list."""
    return [CALLERS]


class FakeCupy(types.ModuleType):
    """New arrays lie on the current device, parts where the whole lies, as in CuPy."""

    def __init__(self, current):
        super().__init__("cupy")
        library = self

        class Device:
            def __init__(self, ordinal):
                self.id, self.before = ordinal, []

            def __enter__(self):
                self.before.append(current[0])
                current[0] = self.id

            def __exit__(self, *_):
                current[0] = self.before.pop()

        class Array:
            def __init__(self, values, ordinal):
                self.values, self.device = values, Device(ordinal)
                self.shape, self.dtype = values.shape, values.dtype

            def __getitem__(self, at):
                return Array(self.values[at], self.device.id)

            def reshape(self, shape):
                return Array(self.values.reshape(shape), self.device.id)

        Array.__module__ = "cupy"

        def concatenate(arrays, axis):
            return Array(np.concatenate([a.values for a in arrays], axis), current[0])

        def ascontiguousarray(array):
            if array.values.flags.c_contiguous:
                return array
            return Array(np.ascontiguousarray(array.values), current[0])

        def stream():
            return types.SimpleNamespace(ptr=64 + current[0], device_id=current[0])

        library.Array, library.concatenate = Array, concatenate
        library.ascontiguousarray = ascontiguousarray
        library.cuda = types.SimpleNamespace(Device=Device, get_current_stream=stream)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_shards_of_cupy_lie_where_their_array_lies(monkeypatch, current, layout):
    cupy = FakeCupy(current)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    whole = cupy.Array(np.arange(2 * 3 * 12 * 4.0).reshape(2, 3, 12, 4), OURS)
    memory = _local_memory.memory_for(whole, f"cuda:{OURS}")
    assert memory.stream.device == OURS
    shards = bk.shard(whole, 3, sequence_layout=layout)
    staged = [memory.stage(shard) for shard in shards]
    gathered = bk.unshard(staged, sequence_layout=layout)
    for array in (*shards, *staged, gathered):
        assert array.device.id == OURS
    assert all(array.values.flags.c_contiguous for array in staged)
    assert np.array_equal(gathered.values, whole.values)
    assert current == [CALLERS]


class FakeCore:
    """cuda.core, of which every call that needs a current device checks it."""

    def __init__(self, current):
        class Stream:
            def __cuda_stream__(self):
                return 0, 64

            def sync(self):
                assert current == [OURS]

        class Buffer:
            def __init__(self, memory):
                self.memory, self.handle = memory, memory.ctypes.data

            @staticmethod
            def from_handle(address, nbytes):
                ref = bk.TensorRef(address, (nbytes,), element="U8", device=-1)
                return Buffer(np.asarray(ref))

            def copy_from(self, other, *, stream):
                assert current == [OURS] and isinstance(stream, Stream)
                self.memory[...] = other.memory

        class Device:
            def __init__(self, ordinal=None):
                self.device_id = current[0] if ordinal is None else ordinal

            def set_current(self):
                current[0] = self.device_id

            def create_stream(self):
                assert current == [OURS]
                return Stream()

            def allocate(self, nbytes, *, stream):
                assert current == [OURS] and isinstance(stream, Stream)
                return Buffer(np.zeros(nbytes, np.uint8))

        self.Device, self.Buffer = Device, Buffer


@pytest.mark.parametrize("callers", [0, 1, 2])
def test_the_callers_device_stays_current(monkeypatch, current, callers):
    current[0] = callers
    monkeypatch.setattr(_local_memory, "_cuda_core", lambda: FakeCore(current))
    monkeypatch.setattr(_local_memory, "why_no_gpu", lambda: "")
    monkeypatch.setattr(_local_memory._info, "devices", lambda: [None] * 3)
    memory = _local_memory.CudaCoreMemory(OURS)
    assert current == [callers]
    x = np.arange(12.0).reshape(3, 4)
    staged = memory.stage(x.T)
    assert current == [callers]
    assert memory.empty((2, 0), "float32").buffer is not None
    assert np.array_equal(memory.fetch(staged), x.T)
    assert current == [callers]
    monkeypatch.setattr(memory._device, "allocate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        memory.empty((1,), "float32")
    assert current == [callers]
