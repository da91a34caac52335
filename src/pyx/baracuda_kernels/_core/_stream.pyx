# cython: language_level=3
"""The stream of the caller's work: a borrowed CUDA stream, or the host."""

from libc.stdint cimport int32_t, uintptr_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check, is_of_a_signal
from baracuda_kernels._core._view cimport integer

from baracuda_kernels._core._errors import (
    BaracudaError,
    CudaError,
    InvalidProblemError,
    UnsupportedError,
)


cdef class Stream:
    """A borrowed CUDA stream, or the host.

    Parameters
    ----------
    source : object or int or None
        An object with ``__cuda_stream__``, a PyTorch or CuPy stream, or a cudaStream_t as an int.
        0 and None are the legacy default stream of the current device. 1 and 2 are CUDA's handles
        of the legacy and the per-thread default stream.
    device : int, optional
        CUDA ordinal; by default the stream's device. While the stream is captured, the default is
        the current device, since asking CUDA for the stream's device could end the capture.

    Attributes
    ----------
    device : int
        CUDA ordinal, -1 for the host.

    Raises
    ------
    InvalidProblemError
        `source` is not a stream, or gives no handle; or `device` is no ordinal.
    CudaError, UnsupportedError
        The runtime does not know the stream's device. Without a GPU, or in a build without CUDA,
        the message names ``Stream.host()``.
    """

    def __init__(self, source=None, *, device=None):
        cdef int32_t found = -1
        handle, known = _ask(source)
        self.handle = <void*><uintptr_t>handle
        self.owner = source
        if device is None:
            device = known
        if device is None:
            try:
                check(c_api.baracuda_cuda_stream_device(self.handle, &found))
            except (CudaError, UnsupportedError) as error:
                refuse_without_gpu(source, error)
                raise
            device = found
        self.device = integer("device", device, 0, 2 ** 31)

    @staticmethod
    def host():
        """The host as a stream: work is done when a call returns."""
        cdef Stream self = Stream.__new__(Stream)
        self.device = -1
        return self

    @property
    def is_host(self):
        """Whether work runs on the CPU."""
        return self.device < 0

    @property
    def pointer(self):
        """The cudaStream_t as an int; 0 for the host and for the legacy default stream."""
        return <uintptr_t>self.handle

    def __cuda_stream__(self):
        if self.device < 0:
            raise AttributeError("the host stream is no CUDA stream")
        return (0, <uintptr_t>self.handle)

    def synchronize(self):
        """Wait until the stream's work is done. For the host it returns at once."""
        cdef int32_t status
        if self.device >= 0:
            with nogil:
                status = c_api.baracuda_cuda_stream_synchronize(self.handle)
            check(status)

    def __repr__(self):
        if self.device < 0:
            return "Stream.host()"
        return f"Stream({<uintptr_t>self.handle:#x}, device={self.device})"


cdef int refuse_without_gpu(object source, object error) except -1:
    """Raise UnsupportedError with the advice to give ``Stream.host()``, if no GPU can be used
    here."""
    from baracuda_kernels._core._info import devices

    if devices():
        return 0
    raise UnsupportedError(
        f"stream: got {source!r}, must be Stream.host() here: no GPU can be used ({error})"
    ) from error


cdef tuple _ask(object source):
    """The handle of a stream, and its device ordinal or None."""
    try:
        handle, device = int(_handle_of(source)), _device_of(source)
    except BaracudaError:
        raise
    except Exception as error:  # such as a stream that is closed
        if is_of_a_signal(error):
            raise
        raise InvalidProblemError(
            f"stream: got a {type(source).__name__} that gives no handle "
            f"({type(error).__name__}: {error}), must be an open CUDA stream") from error
    if handle < 0 or handle >= 2 ** 64:
        raise InvalidProblemError(f"stream: got {handle}, must be a cudaStream_t")
    return handle, device


cdef object _device_of(object source):
    """The device ordinal of a PyTorch or CuPy stream, or None."""
    device = getattr(source, "device_index", None)
    if device is None:
        device = getattr(source, "device_id", -1)  # CuPy: -1 is unknown
    return None if device == -1 else device


cdef object _handle_of(object source):
    if source is None:
        return 0
    if isinstance(source, Stream) and (<Stream>source).device < 0:
        raise InvalidProblemError("stream: got Stream.host(), must be a CUDA stream")
    if isinstance(source, int) and not isinstance(source, bool):
        return source
    if hasattr(source, "__cuda_stream__"):
        protocol = source.__cuda_stream__
        version, handle = protocol() if callable(protocol) else protocol
        if version != 0:
            raise InvalidProblemError(
                f"stream: got version {version} of __cuda_stream__, must be 0")
        return handle
    if hasattr(source, "cuda_stream"):  # torch.cuda.Stream
        return source.cuda_stream
    if hasattr(source, "ptr"):  # cupy.cuda.Stream
        return source.ptr
    raise InvalidProblemError(
        f"stream: got {type(source).__name__}, must have __cuda_stream__, be a PyTorch or "
        "CuPy stream, a cudaStream_t as an int, or Stream.host()")


cdef Stream as_stream(object stream):
    if isinstance(stream, Stream):
        return <Stream>stream
    return Stream(stream)
