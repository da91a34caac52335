# cython: language_level=3
"""The order of the caller's work: a CUDA stream that is borrowed, or the host."""

from libc.stdint cimport int32_t, uintptr_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core._errors import CudaError, InvalidProblemError, UnsupportedError


cdef class Stream:
    """A borrowed CUDA stream, or the host.

    Parameters
    ----------
    source : object or int or None
        Anything with ``__cuda_stream__``, a PyTorch or CuPy stream, or a cudaStream_t as an int.
        0 and None are the legacy default stream of the current device, 1 and 2 CUDA's own names
        for the legacy and the per-thread default stream.
    device : int, optional
        CUDA ordinal; by default what the stream's owner or the CUDA runtime says. Of a stream that
        is being captured the runtime does not tell: then the current device.

    Attributes
    ----------
    device : int
        CUDA ordinal, -1 for the host.

    Raises
    ------
    InvalidProblemError
        Not a stream.
    CudaError, UnsupportedError
        The runtime cannot tell the stream's device; without a GPU, or in a build without CUDA,
        the message names the host's stream.
    """

    def __init__(self, source=None, *, device=None):
        cdef int32_t found = -1
        handle = _handle_of(source)
        self.handle = <void*><uintptr_t>handle
        self.owner = source
        if device is None:
            device = _device_of(source)
        if device is None:
            try:
                check(c_api.baracuda_cuda_stream_device(self.handle, &found))
            except (CudaError, UnsupportedError) as error:
                refuse_without_gpu(source, error)
                raise
            device = found
        if not isinstance(device, int) or device < 0:
            raise InvalidProblemError(f"device: got {device!r}, must be a CUDA ordinal >= 0")
        self.device = device

    @staticmethod
    def host():
        """The host as a stream: work is done when the call returns."""
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
        """Waits until the stream's work is done. The host's always is."""
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
    """An UnsupportedError that says what to give instead, where no GPU can be used here."""
    from baracuda_kernels._core._info import devices

    if devices():
        return 0
    raise UnsupportedError(
        f"stream: got {source!r}, must be Stream.host() here: no GPU can be used ({error})"
    ) from error


cdef object _device_of(object source):
    """The ordinal that a PyTorch or CuPy stream knows of itself, or None."""
    device = getattr(source, "device_index", None)
    if device is None:
        device = getattr(source, "device_id", -1)  # CuPy's word for unknown
    return None if device == -1 else device


cdef object _handle_of(object source):
    if source is None:
        return 0
    if isinstance(source, int) and not isinstance(source, bool):
        handle = source
    elif hasattr(source, "__cuda_stream__"):
        protocol = source.__cuda_stream__
        version, handle = protocol() if callable(protocol) else protocol
        if version != 0:
            raise InvalidProblemError(
                f"stream: got version {version} of __cuda_stream__, must be 0")
    elif hasattr(source, "cuda_stream"):  # torch.cuda.Stream
        handle = source.cuda_stream
    elif hasattr(source, "ptr"):  # cupy.cuda.Stream
        handle = source.ptr
    else:
        raise InvalidProblemError(
            f"stream: got {type(source).__name__}, must have __cuda_stream__, be a PyTorch or "
            "CuPy stream, a cudaStream_t as an int, or Stream.host()")
    handle = int(handle)
    if handle < 0 or handle >= 2 ** 64:
        raise InvalidProblemError(f"stream: got {handle}, must be a cudaStream_t")
    return handle


cdef Stream as_stream(object stream):
    if isinstance(stream, Stream):
        return <Stream>stream
    return Stream(stream)
