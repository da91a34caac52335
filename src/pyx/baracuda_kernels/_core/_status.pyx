# cython: language_level=3
"""Raises the library's errors for status codes of the C ABI."""

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetInterrupt
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


# The exception that a signal handler raised during a call of the C ABI, until the call returns.
cdef object _raised = None


cdef int32_t _look_for_signals() noexcept with gil:
    global _raised
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        _raised = error
        return 1
    return 0


cdef object _interruption():
    global _raised
    error, _raised = _raised, None
    return KeyboardInterrupt() if error is None else error


c_api.baracuda_set_signal_check(_look_for_signals)


cdef int raise_later(int32_t status) except -1:
    if status == c_api.BARACUDA_INTERRUPTED and isinstance(_interruption(), KeyboardInterrupt):
        PyErr_SetInterrupt()
    return 0


cdef int check(int32_t status) except -1:
    if status == c_api.BARACUDA_OK:
        return 0
    raise last_exception(status)


cdef object last_exception(int32_t status):
    cdef const c_api.baracuda_error* error = c_api.baracuda_last_error()
    if status == c_api.BARACUDA_INTERRUPTED:
        return _interruption()
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


cdef str text_of(object error):
    return str(error) if isinstance(error, BaracudaError) else f"{type(error).__name__}: {error}"


cdef bint is_of_a_signal(object error) except -1:
    """Whether a signal's handler raised it. Python may call one in any code of an operand's, whose
    own errors are reported as a wrong operand."""
    import signal

    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    functions = [getattr(handler, "__func__", handler) for handler in handlers]
    codes = {getattr(function, "__code__", None) for function in functions} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False
