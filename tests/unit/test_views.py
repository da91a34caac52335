"""TensorRef, TensorMut, DeviceSlice and Stream: every way in, every refusal."""

import ctypes as ct
import gc
import signal
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest

import baracuda_kernels as bk

DTYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
          "S8": np.int8, "U8": np.uint8, "I32": np.int32, "I64": np.int64, "BOOL": np.bool_,
          "U32": np.uint32}


class OnlyDlpack:
    """A producer with nothing but DLPack, with or without the 1.0 keywords."""

    def __init__(self, array, versioned):
        self.array = array
        self.versioned = versioned

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream=None, **kwargs):
        assert stream is None
        if not self.versioned:
            if kwargs:
                raise TypeError("unexpected keyword")
            return self.array.__dlpack__()
        return self.array.__dlpack__(**kwargs)


@pytest.mark.parametrize("name", DTYPES)
def test_numpy_of_every_dtype(name):
    array = np.zeros((3, 4, 5), DTYPES[name])
    view = bk.TensorRef(array)
    assert view.element.name == name and view.shape == (3, 4, 5) and view.strides == (20, 5, 1)
    assert view.pointer == array.ctypes.data and view.device == -1 and view.nbytes == array.nbytes
    assert view.is_contiguous() and view.writable


@pytest.mark.parametrize("versioned", [False, True])
def test_dlpack_capsules(versioned):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, ::2, ::-1]
    view = bk.TensorRef(OnlyDlpack(array, versioned))
    assert view.shape == (2, 2, 4) and view.strides == (12, 8, -1)
    assert view.pointer == array.ctypes.data and view.element is bk.ElementKind.F32
    assert not view.is_contiguous()


def test_read_only_is_seen():
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    assert not bk.TensorRef(array).writable
    assert not bk.TensorRef(OnlyDlpack(array, True)).writable
    for source in (array, OnlyDlpack(array, True)):
        with pytest.raises(bk.InvalidProblemError, match="read-only"):
            bk.TensorMut(source)


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: OnlyDlpack(a, True)])
def test_a_view_keeps_its_owner_and_lets_it_go(wrap):
    array = np.zeros(1000)
    ghost, before = weakref.ref(array), sys.getrefcount(array)
    for _ in range(100):
        bk.TensorRef(wrap(array))
    assert sys.getrefcount(array) == before
    view = bk.TensorRef(wrap(array))
    del array
    gc.collect()
    assert ghost() is not None and view.shape == (1000,)
    del view
    gc.collect()
    assert ghost() is None


def test_addresses():
    array = np.arange(12, dtype=np.float32)
    view = bk.TensorRef(array.ctypes.data, (3, 4), element="F32", device=-1)
    assert np.array_equal(np.asarray(view), array.reshape(3, 4))
    strided = bk.TensorRef(array.ctypes.data, (2, 3), (6, 2), "F32", device=-1)
    assert np.array_equal(np.asarray(strided), array.reshape(2, 6)[:, ::2])
    assert bk.TensorRef(array.ctypes.data, (12,), element="F32").device == -1
    for bad in ({"shape": (3,)}, {"element": "F32"}, {"shape": (3,), "element": "S4"},
                {"shape": (-1,), "element": "F32"}, {"shape": (1,) * 9, "element": "F32"},
                {"shape": (2, 2), "strides": (1,), "element": "F32"}):
        with pytest.raises((bk.InvalidProblemError, bk.UnsupportedError)):
            bk.TensorRef(array.ctypes.data, **bad)


class WithInterface:
    """An array at any address."""

    def __init__(self, name, address, shape):
        setattr(self, name, {"shape": shape, "typestr": "<f4", "version": 3,
                             "data": (address, False)})


NOWHERE = {
    "address": lambda shape: bk.TensorRef(0, shape, element="F32", device=-1),
    "array": lambda shape: bk.TensorRef(WithInterface("__array_interface__", 0, shape)),
    "cuda array": lambda shape: bk.TensorRef(WithInterface("__cuda_array_interface__", 0, shape)),
    "cuda array without one": lambda shape: bk.TensorRef(
        WithInterface("__cuda_array_interface__", None, shape)),
    "argument": lambda shape: bk.FlashSdpaArgs(
        q=np.zeros(3), k=np.zeros(3), v=np.zeros(3),
        y=WithInterface("__array_interface__", 0, shape)),
}


@pytest.mark.parametrize("make", NOWHERE.values(), ids=NOWHERE)
def test_elements_without_memory(make):
    for shape in ((3,), (2, 3), ()):
        with pytest.raises(bk.InvalidProblemError, match=r"(tensor|y): got a null address, must"):
            make(shape)


def test_nothing_needs_no_memory():
    for make in (NOWHERE["address"], NOWHERE["array"]):
        assert make((2, 0)).pointer == 0


def test_a_byte_buffer_takes_a_shape():
    buffer = np.zeros(64, np.uint8)
    view = bk.TensorRef(buffer, (2, 4), element="F64")
    assert view.shape == (2, 4) and view.element is bk.ElementKind.F64
    with pytest.raises(bk.InvalidProblemError, match="must hold the 72"):
        bk.TensorRef(buffer, (9,), element="F64")
    with pytest.raises(bk.InvalidProblemError, match="contiguous"):
        bk.TensorRef(buffer[::2], (4,), element="F64")


def test_strides_alone_are_not_left_out():
    array = np.arange(64, dtype=np.float32).reshape(8, 8)
    for source in (array, OnlyDlpack(array, True), bk.TensorRef(array)):
        with pytest.raises(bk.InvalidProblemError, match=r"strides \(1, 8\) alone, must come with"):
            bk.TensorRef(source, strides=(1, 8))
    assert bk.TensorRef(array, (8, 8), (1, 8)).strides == (1, 8)


@pytest.mark.parametrize("name", ["__array_interface__", "__cuda_array_interface__"])
def test_a_mask_of_an_interface_is_not_lost(name):
    array = np.zeros(4, np.float32)
    source = WithInterface(name, array.ctypes.data, (4,))
    getattr(source, name)["mask"] = WithInterface(name, array.ctypes.data, (4,))
    with pytest.raises(bk.InvalidProblemError, match="got a masked array, must be an array without"):
        bk.TensorRef(source)
    source = WithInterface("__array_interface__", array.ctypes.data, (4,))
    source.__array_interface__["mask"] = None
    assert bk.TensorRef(source).shape == (4,)


class DlpackFlags(OnlyDlpack):
    """Sets flags in its versioned capsule."""

    def __init__(self, array, flags):
        super().__init__(array, True)
        self.flags = flags

    def __dlpack__(self, **kwargs):
        capsule = super().__dlpack__(**kwargs)
        pointer = ct.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ct.c_void_p, [ct.py_object, ct.c_char_p]
        # After the version (two uint32), the context and the deleter.
        ct.c_uint64.from_address(pointer(capsule, b"dltensor_versioned") + 24).value |= self.flags
        return capsule


def test_a_copy_by_dlpack_is_refused():
    """What is written to a copy is lost, and a later run would read the first run's inputs."""
    array = np.zeros(4, np.float32)
    assert bk.TensorRef(DlpackFlags(array, 0)).writable
    assert not bk.TensorRef(DlpackFlags(array, 1)).writable
    with pytest.raises(bk.InvalidProblemError, match="got a copy from the __dlpack__ of a DlpackFl"):
        bk.TensorRef(DlpackFlags(array, 2))


@pytest.mark.parametrize("view", [bk.TensorRef, bk.TensorMut, bk.DeviceSlice])
def test_a_view_has_one_source(view):
    """A plan keeps the addresses of a view's first source, and the view keeps that memory."""
    array = np.zeros(4, np.float32)
    made = view(array)
    with pytest.raises(bk.InvalidProblemError, match=f"second source for a {view.__name__}, must"):
        made.__init__(np.ones(5))
    assert made.pointer == array.ctypes.data and made.shape == (4,)


@pytest.mark.parametrize("bad", ["text", [1.0], object(), None, 1.5])
def test_what_is_no_tensor(bad):
    with pytest.raises(bk.InvalidProblemError):
        bk.TensorRef(bad)


class Unwilling:
    """A tensor that raises where it is asked for its memory."""

    def __init__(self, where, error):
        self.where, self.error = where, error

    def __getattr__(self, name):
        if name == self.where == "__array_interface__":
            raise self.error
        if name == "__dlpack_device__":
            return self._device
        if name == "__dlpack__":
            return self._export
        raise AttributeError(name)

    def _device(self):
        if self.where == "__dlpack_device__":
            raise self.error
        return 1, 0

    def _export(self, **_):
        raise self.error


@pytest.mark.parametrize("where", ["__dlpack_device__", "__dlpack__", "__array_interface__"])
@pytest.mark.parametrize("error", [ValueError, RuntimeError, NotImplementedError, TypeError,
                                   KeyError, BufferError, OSError])
def test_a_tensor_that_cannot_be_viewed(where, error):
    for make in (bk.TensorRef, bk.DeviceSlice):
        with pytest.raises(bk.InvalidProblemError, match="(tensor|slice): .*Unwilling.*no such"):
            make(Unwilling(where, error("no such day")))
    with pytest.raises(MemoryError):
        bk.TensorRef(Unwilling(where, MemoryError("full")))


def test_unknown_dtypes_and_foreign_byte_order():
    for array in (np.zeros(3, "U4"), np.zeros(3, ">f4"), np.zeros(3, np.uint16)):
        with pytest.raises(bk.UnsupportedError):
            bk.TensorRef(array)
    with pytest.raises(bk.InvalidProblemError, match="F32"):
        bk.TensorRef(np.zeros(3, np.float32), element="F64")
    assert bk.TensorRef(np.zeros(3, np.float32), element="F32_STRICT").nbytes == 12


def test_slices_share_memory_both_ways():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    run = bk.DeviceSlice(array)
    assert len(run) == 6 and run.shape == (6,)
    assert bytes(memoryview(run)) == array.tobytes()
    memoryview(run)[:4] = b"\x07\0\0\0"
    assert array[0, 0] == 7
    with pytest.raises(bk.InvalidProblemError, match="contiguous"):
        bk.DeviceSlice(array.T)
    array.flags.writeable = False
    frozen = bk.DeviceSlice(array)
    assert memoryview(frozen).readonly
    with pytest.raises(TypeError):
        memoryview(frozen)[0] = 1
    assert bk.DeviceSlice(array.ctypes.data, 6, "I32", device=-1).nbytes == 24


def test_a_wrong_device_is_named():
    with pytest.raises(bk.InvalidProblemError, match="device -1, must be on 0"):
        bk.TensorRef(np.zeros(3), device=0)


class FakeStream:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class ProtocolStream:
    def __cuda_stream__(self):
        return (0, 77)


def test_streams():
    host = bk.Stream.host()
    assert host.is_host and host.device == -1 and host.pointer == 0
    host.synchronize()
    with pytest.raises(AttributeError):
        host.__cuda_stream__()
    assert bk.Stream(77, device=1).__cuda_stream__() == (0, 77)
    assert bk.Stream(ProtocolStream(), device=0).pointer == 77
    assert bk.Stream(FakeStream(cuda_stream=5, device_index=2)).device == 2
    assert bk.Stream(FakeStream(ptr=6, device_id=3)).device == 3
    assert bk.Stream(FakeStream(ptr=6, device_id=-1), device=0).pointer == 6
    assert bk.Stream(None, device=0).pointer == 0


@pytest.mark.parametrize("bad", ["stream", object(), -1, 1.5, True])
def test_what_is_no_stream(bad):
    with pytest.raises(bk.InvalidProblemError, match="stream"):
        bk.Stream(bad, device=0)
    with pytest.raises(bk.InvalidProblemError, match="device"):
        bk.Stream(0, device=-2)


class LyingDlpack(OnlyDlpack):
    """Overwrites a field of its capsule's tensor."""

    def __init__(self, array, offset, kind, value):
        super().__init__(array, False)
        self.field = offset, kind, value

    def __dlpack__(self, **kwargs):
        capsule = super().__dlpack__(**kwargs)
        pointer = ct.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ct.c_void_p, [ct.py_object, ct.c_char_p]
        offset, kind, value = self.field
        kind.from_address(pointer(capsule, b"dltensor") + offset).value = value
        return capsule


@pytest.mark.parametrize(("field", "match"), [
    ((16, ct.c_int32, 10**9), "got 1000000000 dimensions, must have at most 8"),
    ((16, ct.c_int32, -3), "got -3 dimensions, must have at most 8"),
    ((24, ct.c_void_p, 0), "got a capsule of 2 dimensions without a shape"),
    ((8, ct.c_int32, 2), "got DLPack device type 2 in the capsule of a LyingDlpack.*device__, 1"),
    ((0, ct.c_void_p, 0), "got a null address"),
])  # fmt: skip
def test_a_capsule_that_lies_is_refused(field, match):
    with pytest.raises(bk.InvalidProblemError, match=match):
        bk.TensorRef(LyingDlpack(np.zeros((2, 3), np.float32), *field))


def test_a_number_of_numpy_is_no_address():
    """NumPy would give the number's own bytes as an array."""
    address = np.int64(np.zeros(2, np.float32).ctypes.data)
    with pytest.raises(bk.InvalidProblemError, match="as int64, must be a tensor, or an int as an"):
        bk.TensorRef(address, (2,), element="F32")


def test_a_foreign_byte_order_on_a_gpu_is_refused():
    source = WithInterface("__cuda_array_interface__", 0, (4,))
    source.__cuda_array_interface__["typestr"] = ">f4"
    with pytest.raises(bk.UnsupportedError, match="got typestr '>f4', must be .* byte order"):
        bk.TensorRef(source)


@pytest.mark.parametrize("kind", [TimeoutError, RuntimeError, TypeError])
@pytest.mark.parametrize("method", ["__dlpack_device__", "__dlpack__", "__cuda_stream__"])
def test_the_exception_of_a_signal_s_handler_is_not_the_operand_s(kind, method):
    class Late(kind):
        pass

    def handler(*_):
        raise Late("deadline")

    class Slow(OnlyDlpack):
        pass

    def late(self, *_, **__):
        signal.raise_signal(signal.SIGUSR1)  # as one that arrives here

    setattr(Slow, method, late)
    source = Slow(np.zeros(4), True)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Late, match="deadline"):
            (bk.Stream if method == "__cuda_stream__" else bk.TensorRef)(source)
    finally:
        signal.signal(signal.SIGUSR1, before)
