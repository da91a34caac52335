# cython: language_level=3
"""From the C ABI's status codes to the library's errors."""

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api

from baracuda_kernels._core._errors import (
    BaracudaError,
    CommunicatorError,
    CudaError,
    InvalidProblemError,
    MisalignedOperandError,
    NcclError,
    NcclTimeoutError,
    UnsupportedError,
)


cdef int check(int32_t status) except -1:
    if status == c_api.BARACUDA_OK:
        return 0
    raise last_exception(status)


cdef object last_exception(int32_t status):
    cdef const c_api.baracuda_error* error = c_api.baracuda_last_error()
    cdef str call = error.call.decode("utf-8", "replace")
    cdef str message = error.message.decode("utf-8", "replace")
    if status == c_api.BARACUDA_CUDA_ERROR:
        return CudaError(error.code, call, message)
    if status == c_api.BARACUDA_NCCL_ERROR:
        return NcclError(error.code, call, error.rank, message, error.step)
    if status == c_api.BARACUDA_TIMEOUT:
        return NcclTimeoutError(message, error.rank, error.step, call)
    if status == c_api.BARACUDA_OUT_OF_MEMORY:
        return MemoryError(f"{call}: {message}")
    if error.rank >= 0:
        message = f"{message} (rank {error.rank}, ring step {error.step})"
    if status == c_api.BARACUDA_INVALID_ARGUMENT:
        return InvalidProblemError(f"{call}: {message}")
    if status in (c_api.BARACUDA_UNSUPPORTED, c_api.BARACUDA_UNAVAILABLE):
        return UnsupportedError(f"{call}: {message}")
    if status == c_api.BARACUDA_MISALIGNED:
        return MisalignedOperandError(f"{call}: {message}")
    if status in (c_api.BARACUDA_ABORTED, c_api.BARACUDA_TRANSPORT_ERROR):
        return CommunicatorError(f"{call}: {message}")
    return BaracudaError(f"{call}: {message} (status {status})")
