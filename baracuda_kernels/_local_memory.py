"""Where the operands of a local ring live: NumPy, a framework's arrays, or cuda.core's buffers.

`memory_for` picks one. All have the same methods, so that the ring is written once. `stage` copies
a shard to a dense array in the memory, unless it is one already. `empty` makes an output or
scratch. `operand` gives an array in the form that plans take. `fetch` gives an output in the form
that the caller gets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from baracuda_kernels._arguments import library_of
from baracuda_kernels._core import _info
from baracuda_kernels._core._enums import ElementKind
from baracuda_kernels._machine import why_no_gpu
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.ops.ring_attention._plan import SPEC

# Name of a dtype -> its element, of those that Ring Attention takes.
DTYPES = SPEC.dtypes


def element_of(x: Any, name: str) -> ElementKind:
    """The ElementKind of an array, or InvalidProblemError with the dtypes that are served."""
    if not getattr(x.dtype, "isnative", True):  # NumPy's; its name hides the order of the bytes
        raise InvalidProblemError(
            f"{name}: got dtype {x.dtype}, must be in this machine's byte order "
            "(x.astype(x.dtype.newbyteorder('=')))"
        )
    element = ElementKind.of_dtype(x.dtype)
    if element is None or element not in DTYPES.values():
        raise InvalidProblemError(
            f"{name}: got dtype {x.dtype}, must be one of {', '.join(DTYPES)}"
        )
    return element


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype with that name, of NumPy or of ml_dtypes."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype


def parse_device(device: Any) -> int:
    """-1 for ``"host"`` and ``"cpu"``, the ordinal for ``"cuda"`` (0) and ``"cuda:N"``.

    Takes a torch.device too.
    """
    text = str(device) if isinstance(device, str) or library_of(device) == "torch" else ""
    kind, _, ordinal = text.partition(":")
    if kind in ("host", "cpu") and ordinal in ("", "0"):
        return -1
    if text == "cuda":
        return 0
    if kind == "cuda" and ordinal.isdecimal() and len(ordinal) < 6:
        return int(ordinal)
    raise InvalidProblemError(
        f"device: got {device!r}, must be 'host' (or 'cpu'), 'cuda' or 'cuda:N'"
    )


def memory_for(x: Any, device: Any) -> Any:
    """The memory that serves arrays of the kind of `x` on `device`."""
    ordinal = parse_device(device)
    library = library_of(x)
    if library == "numpy":
        return HostMemory() if ordinal < 0 else CudaCoreMemory(ordinal)
    if library == "torch":
        return TorchMemory(x, ordinal)
    if library == "cupy":
        return CupyMemory(x, ordinal)
    raise InvalidProblemError(
        f"q: got {type(x).__module__}.{type(x).__qualname__}, must be a NumPy array, a PyTorch "
        "tensor or a CuPy array"
    )


def _device_mismatch(where: str, ordinal: int) -> InvalidProblemError:
    asked = "host" if ordinal < 0 else f"cuda:{ordinal}"
    return InvalidProblemError(f"device: got {asked!r} for q on {where}, must be {where!r}")


class HostMemory:
    """NumPy arrays in host memory."""

    ring_device: str | int = "host"

    def __init__(self) -> None:
        from baracuda_kernels import Stream

        self.stream = Stream.host()

    def stage(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x)

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.empty(shape, dtype=numpy_dtype(dtype))

    def fetch(self, array: np.ndarray) -> np.ndarray:
        return array

    def operand(self, array: np.ndarray) -> np.ndarray:
        return array


class TorchMemory:
    """PyTorch tensors on the host or on one GPU, on PyTorch's current stream."""

    def __init__(self, x: Any, ordinal: int) -> None:
        from baracuda_kernels import Stream

        self._torch = torch = sys.modules["torch"]
        if x.device.type not in ("cpu", "cuda"):
            raise InvalidProblemError(
                f"q: got memory on {x.device}, must be on the CPU or a CUDA device"
            )
        if x.device.type == "cuda" and x.device.index != ordinal:
            raise _device_mismatch(str(x.device), ordinal)
        self._home = x.device
        self.ring_device: str | int = "host" if ordinal < 0 else ordinal
        self._device = torch.device("cpu") if ordinal < 0 else torch.device("cuda", ordinal)
        if ordinal < 0:
            self.stream = Stream.host()
        else:
            self.stream = Stream(torch.cuda.current_stream(self._device))

    def stage(self, x: Any) -> Any:
        return x.detach().to(self._device).contiguous()

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=self._device)

    def operand(self, array: Any) -> Any:
        return array

    def fetch(self, array: Any) -> Any:
        return array.to(self._home)


class CupyMemory:
    """CuPy arrays on one GPU, on CuPy's current stream."""

    def __init__(self, x: Any, ordinal: int) -> None:
        from baracuda_kernels import Stream

        self._cupy = sys.modules["cupy"]
        if x.device.id != ordinal:
            raise _device_mismatch(f"cuda:{x.device.id}", ordinal)
        self.ring_device: str | int = ordinal
        self._ordinal = ordinal
        with self._cupy.cuda.Device(ordinal):
            self.stream = Stream(self._cupy.cuda.get_current_stream())

    def stage(self, x: Any) -> Any:
        with self._cupy.cuda.Device(self._ordinal):  # a copy is made on the current device
            return self._cupy.ascontiguousarray(x)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        with self._cupy.cuda.Device(self._ordinal):
            return self._cupy.empty(shape, dtype=numpy_dtype(dtype))

    def operand(self, array: Any) -> Any:
        return array

    def fetch(self, array: Any) -> Any:
        return array


class CudaCoreMemory:
    """NumPy arrays of the caller, staged in cuda.core buffers on the GPU."""

    def __init__(self, ordinal: int) -> None:
        from baracuda_kernels import Stream

        reason = why_no_gpu()
        if reason:
            raise UnsupportedError(
                f"device: got 'cuda:{ordinal}', must be 'host' here: no GPU can be used, {reason}"
            )
        if ordinal >= len(_info.devices()):
            raise InvalidProblemError(
                f"device: got 'cuda:{ordinal}', must be one of the {len(_info.devices())} CUDA "
                "devices of this machine"
            )
        self._core = core = _cuda_core()
        self._buffer_type = core.Buffer
        self._device = core.Device(ordinal)
        with self._current():
            self._stream = self._device.create_stream()
        self.ring_device: str | int = ordinal
        self.stream = Stream(self._stream, device=ordinal)

    def stage(self, x: np.ndarray) -> DeviceArray:
        x = np.ascontiguousarray(x)
        array = self.empty(x.shape, x.dtype.name)
        if x.nbytes:
            with self._current():
                array.buffer.copy_from(self._host(x), stream=self._stream)
        return array

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        nbytes = int(np.prod(shape, dtype=np.int64)) * numpy_dtype(dtype).itemsize
        # cuda.core gives no address for zero bytes.
        with self._current():
            buffer = self._device.allocate(max(nbytes, 1), stream=self._stream)
        return DeviceArray(buffer, tuple(shape), dtype)

    def operand(self, array: DeviceArray) -> Any:
        from baracuda_kernels import TensorMut

        address = int(array.buffer.handle)
        element, device = ElementKind.of_dtype(array.dtype), self._device.device_id
        return TensorMut(address, array.shape, element=element, device=device)

    def fetch(self, array: DeviceArray) -> np.ndarray:
        x = np.empty(array.shape, dtype=numpy_dtype(array.dtype))
        with self._current():
            if x.nbytes:
                self._host(x).copy_from(array.buffer, stream=self._stream)
            self._stream.sync()
        return x

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make the device current, and at the end the caller's device again."""
        callers = self._core.Device()  # the current one
        self._device.set_current()
        try:
            yield
        finally:
            if callers.device_id != self._device.device_id:
                callers.set_current()

    def _host(self, x: np.ndarray) -> Any:
        return self._buffer_type.from_handle(x.ctypes.data, x.nbytes)


class DeviceArray(NamedTuple):
    """A cuda.core buffer with a shape and a dtype's name."""

    buffer: Any
    shape: tuple[int, ...]
    dtype: str


def _cuda_core() -> Any:
    try:
        from cuda import core

        if hasattr(core, "Device"):
            return core
        # Versions before 0.5 have it in this module.
        import cuda.core.experimental as core
    except ImportError as error:
        raise UnsupportedError(
            "NumPy arrays on a CUDA device need cuda.core, which owns the device memory: "
            "pip install cuda-core (from a clone: pip install '.[cu13]'; CUDA 12: '.[cu12]'), "
            f"or pass arrays that are on the device already ({error})"
        ) from error
    return core
