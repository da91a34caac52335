# cython: language_level=3
"""The token by which the ranks of a NCCL ring find each other."""

from cpython.bytes cimport PyBytes_FromStringAndSize

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core import _nccl_library
from baracuda_kernels._core._errors import InvalidProblemError


cdef class UniqueId:
    """UniqueId(data)

    NCCL's rendezvous token: one rank makes it and sends it to all ranks. Hashable, picklable.

    Parameters
    ----------
    data : bytes
        128 bytes.

    Attributes
    ----------
    bytes : bytes
        What to send to the other ranks.

    Raises
    ------
    InvalidProblemError
        Not bytes, or not 128.
    """

    cdef readonly bytes bytes

    def __cinit__(self, data):
        if not isinstance(data, bytes):
            raise InvalidProblemError(
                f"unique_id: got {type(data).__name__}, must be "
                f"{c_api.BARACUDA_NCCL_UNIQUE_ID_BYTES} bytes")
        if len(data) != c_api.BARACUDA_NCCL_UNIQUE_ID_BYTES:
            raise InvalidProblemError(
                f"unique_id: got {len(data)} bytes, must be "
                f"{c_api.BARACUDA_NCCL_UNIQUE_ID_BYTES}")
        self.bytes = data

    @staticmethod
    def new():
        """A fresh id (``ncclGetUniqueId``); needs NCCL, not a GPU.

        Raises
        ------
        UnsupportedError
            No NCCL was found.
        NcclError
            NCCL could not make an id.
        """
        cdef char buffer[128]
        _nccl_library.load()
        check(c_api.baracuda_nccl_unique_id(buffer))
        return UniqueId(PyBytes_FromStringAndSize(buffer, c_api.BARACUDA_NCCL_UNIQUE_ID_BYTES))

    @staticmethod
    def from_bytes(data):
        """The id that ``data`` holds: 128 bytes of ``bytes`` or any other object with the buffer
        protocol; else an :class:`InvalidProblemError`."""
        try:
            view = memoryview(data)
        except TypeError:
            return UniqueId(data)  # raises
        return UniqueId(view.tobytes())

    def __eq__(self, other):
        return isinstance(other, UniqueId) and self.bytes == (<UniqueId>other).bytes

    def __hash__(self):
        return hash(self.bytes)

    def __reduce__(self):
        return UniqueId, (self.bytes,)

    def __repr__(self):
        return f"UniqueId({self.bytes[:16].hex()}...)"
