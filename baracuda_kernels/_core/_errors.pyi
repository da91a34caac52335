class BaracudaError(Exception): ...
class UnsupportedError(BaracudaError, NotImplementedError): ...
class InvalidProblemError(BaracudaError, ValueError): ...
class MisalignedOperandError(InvalidProblemError): ...

class _TooSmallError(BaracudaError):
    needed: int
    got: int
    argument: str
    def __init__(self, needed: int, got: int, argument: str = "buffer") -> None: ...

class WorkspaceTooSmallError(_TooSmallError): ...
class BufferTooSmallError(_TooSmallError): ...

class CudaError(BaracudaError, RuntimeError):
    status: int
    call: str
    message: str
    def __init__(self, status: int, call: str, message: str = "") -> None: ...

class CommunicatorError(BaracudaError, RuntimeError): ...

class NcclError(CommunicatorError):
    status: int
    call: str
    rank: int
    message: str
    step: int
    def __init__(
        self, status: int, call: str, rank: int = -1, message: str = "", step: int = -1
    ) -> None: ...

class NcclTimeoutError(CommunicatorError, TimeoutError):
    message: str
    rank: int
    step: int
    call: str
    def __init__(
        self, message: str, rank: int = -1, step: int = -1, call: str = ""
    ) -> None: ...
