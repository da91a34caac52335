# cython: language_level=3
"""What NCCL communicators are made with: the defaults, and the checks of the arguments."""

import os

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core._errors import InvalidProblemError

DEFAULT_TIMEOUT = 300.0
# SMs that an exchange may take, and that kernels leave to it. Over NVLink an H100 moves about
# 34 GB/s each way with 4 SMs, and 60 GB/s with 8. Causal steps of 8192 rows (8 key heads of 128)
# need 39 GB/s: 33 MB in 0.85 ms.
DEFAULT_MAX_CTAS = 8
_MOST_CTAS = 64  # NCCL's channels
# The default of `exchange` where BARACUDA_EXCHANGE is not set.
DEFAULT_EXCHANGE = "auto"
_WISHES = {"auto": c_api.BARACUDA_PEER_AUTO, "peer": c_api.BARACUDA_PEER_REQUIRED,
           "nccl": c_api.BARACUDA_PEER_NEVER}
_WAITS = {"event": c_api.BARACUDA_PEER_WAIT_EVENT, "value": c_api.BARACUDA_PEER_WAIT_VALUE,
          "gate": c_api.BARACUDA_PEER_WAIT_GATE}


def exchange_info():
    """What ``info`` shows of the exchange, as a dict: the default, why communicators refuse it, and
    why no hop can be by peer here ("" where there is no such reason)."""
    reason = ""
    if not c_api.baracuda_cuda_built():
        reason = "this build has no CUDA"
    elif c_api.baracuda_cuda_peer_ops() == NULL:
        reason = "the driver cannot let streams wait for words"
    wrong = ""
    try:
        wish_of(None)
    except InvalidProblemError as error:
        wrong = str(error)
    return {"default": os.environ.get("BARACUDA_EXCHANGE") or DEFAULT_EXCHANGE,
            "wrong_default": wrong, "no_peer_reason": reason}


def check_options(device, max_ctas, exchange, timeout):
    """Raise what :meth:`Communicator.init_rank` would raise for these on this rank alone."""
    cdef c_api.baracuda_cuda_device info
    cdef int32_t ordinal = device_ordinal(device)
    ctas_of(max_ctas)
    wish_of(exchange)
    peer_wait()
    seconds_of(timeout)
    if ordinal >= 0:
        check(c_api.baracuda_cuda_device_info(ordinal, &info))


cdef int32_t device_ordinal(object device) except? -2:
    cdef int32_t current = 0
    if device is None:
        check(c_api.baracuda_cuda_current_device(&current))
        return current
    if isinstance(device, str) and device == "host":
        return -1
    if is_integer(device, 0, 2 ** 31):
        return device
    raise InvalidProblemError(f"device: got {device!r}, must be a CUDA ordinal >= 0")


cdef list device_ordinals(object devices):
    try:
        given = list(devices)
    except TypeError:
        raise InvalidProblemError(
            f"devices: got {devices!r}, must be a sequence of CUDA ordinals") from None
    ordinals = [device_ordinal(device) for device in given]
    if not ordinals or len(set(ordinals)) != len(ordinals):
        raise InvalidProblemError(f"devices: got {given}, must be distinct, one or more")
    return ordinals


cdef int32_t ctas_of(object max_ctas) except? -2:
    if max_ctas is None:
        return DEFAULT_MAX_CTAS
    if is_integer(max_ctas, 1, _MOST_CTAS + 1):
        return 1 << (max_ctas - 1).bit_length()
    raise InvalidProblemError(
        f"max_ctas: got {max_ctas!r}, must be None or an integer from 1 to {_MOST_CTAS}")


cdef int32_t wish_of(object exchange) except -1:
    if exchange is None:
        exchange = os.environ.get("BARACUDA_EXCHANGE") or DEFAULT_EXCHANGE
    if not isinstance(exchange, str) or exchange not in _WISHES:
        raise InvalidProblemError(
            f"exchange: got {exchange!r}, must be \"auto\", \"peer\" or \"nccl\"")
    return _WISHES[exchange]


cdef double seconds_of(object timeout) except? -2:
    if timeout is None:
        return 0.0
    return positive_seconds(timeout, "None or ")


cdef double positive_seconds(object timeout, str other="") except? -2:
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout > 0:
        try:
            return timeout
        except OverflowError:
            raise InvalidProblemError(
                f"timeout: got an integer beyond all floats, must be {other}> 0 seconds") from None
    raise InvalidProblemError(f"timeout: got {timeout!r}, must be {other}> 0 seconds")


cdef int32_t peer_wait() except -1:
    cdef object wait = os.environ.get("BARACUDA_PEER_WAIT") or "gate"
    if wait not in _WAITS:
        raise InvalidProblemError(
            f"BARACUDA_PEER_WAIT: got {wait!r}, must be \"event\", \"value\" or \"gate\"")
    return _WAITS[wait]


cdef bint is_integer(object value, object low, object end):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < end
