# cython: language_level=3
"""All errors of the library. They pickle with their fields."""


class BaracudaError(Exception):
    """Base of every error of this library."""


class UnsupportedError(BaracudaError, NotImplementedError):
    """The request is valid, but this build, machine or installed library does not serve it."""


class InvalidProblemError(BaracudaError, ValueError):
    """An argument is invalid for every kernel: a wrong shape, dtype, device, value or overlap."""


class MisalignedOperandError(InvalidProblemError):
    """A pointer or stride does not have the alignment that the chosen kernel needs."""


class _TooSmallError(BaracudaError):
    _unit = ""

    def __init__(self, needed, got, argument="buffer"):
        super().__init__(needed, got, argument)
        self.needed = int(needed)
        self.got = int(got)
        self.argument = argument

    def __str__(self):
        return f"{self.argument}: got {self.got} {self._unit}, must hold at least {self.needed}"


class WorkspaceTooSmallError(_TooSmallError):
    """A workspace is too small; ``needed`` and ``got`` are bytes."""

    _unit = "bytes"


class BufferTooSmallError(_TooSmallError):
    """A buffer is too small; ``needed`` and ``got`` are elements."""

    _unit = "elements"


class CudaError(BaracudaError, RuntimeError):
    """A CUDA runtime call failed.

    Attributes
    ----------
    status : int
        The cudaError_t.
    call : str
        The function that failed.
    message : str
        CUDA's text.
    """

    def __init__(self, status, call, message=""):
        super().__init__(status, call, message)
        self.status = int(status)
        self.call = call
        self.message = message

    def __str__(self):
        return f"{self.call}: {self.message or 'failed'} (cudaError {self.status})"


class CommunicatorError(BaracudaError, RuntimeError):
    """A communicator cannot be used: it is in another call, failed, aborted or closed, a rank could
    not join, or a transport failed."""


class NcclError(CommunicatorError):
    """An NCCL call failed.

    Attributes
    ----------
    status : int
        The ncclResult_t.
    call : str
        The function that failed.
    rank, step : int
        The rank that failed, and the step of the ring; -1 outside of a step.
    message : str
        NCCL's text.
    """

    def __init__(self, status, call, rank=-1, message="", step=-1):
        super().__init__(status, call, rank, message, step)
        self.status = int(status)
        self.call = call
        self.rank = int(rank)
        self.message = message
        self.step = int(step)

    def __str__(self):
        where = "" if self.rank < 0 else f" on rank {self.rank}"
        when = "" if self.step < 0 else f" at ring step {self.step}"
        return f"{self.call}{where}{when}: {self.message or 'failed'} (ncclResult {self.status})"


class NcclTimeoutError(CommunicatorError, TimeoutError):
    """A peer was not there before the deadline. The communicator, if owned, was aborted.

    Attributes
    ----------
    message : str
        What the call waited for, and how long.
    rank, step : int
        The rank that waited, and the step of the ring; -1 outside of a step.
    call : str
        The call that waited.
    """

    def __init__(self, message, rank=-1, step=-1, call=""):
        super().__init__(message, rank, step, call)
        self.message = message
        self.rank = int(rank)
        self.step = int(step)
        self.call = call

    def __str__(self):
        where = "" if self.rank < 0 else f" on rank {self.rank}"
        when = "" if self.step < 0 else f" at ring step {self.step}"
        return f"{self.call or 'ring'}{where}{when}: {self.message}"
