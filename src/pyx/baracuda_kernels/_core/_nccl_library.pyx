# cython: language_level=3
"""Which libnccl is used, and where it came from. Loaded at the first communicator."""

import os

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core._errors import UnsupportedError


def library_path():
    """Path of the NCCL that would be used, or is in use.

    ``BARACUDA_NCCL_LIBRARY`` if set; else what :mod:`cuda.pathfinder` finds: the copy that a
    framework has already loaded, the nvidia-nccl wheel, then the system's.

    Raises
    ------
    UnsupportedError
        None is to be found; the message says what to install.
    """
    if c_api.baracuda_nccl_path() != NULL:
        return c_api.baracuda_nccl_path().decode()
    path = os.environ.get("BARACUDA_NCCL_LIBRARY")
    if path:
        return path
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        found = load_nvidia_dynamic_lib("nccl")
    except DynamicLibNotFoundError as error:
        raise UnsupportedError(
            "NCCL: no libnccl.so.2 found; pip install nvidia-nccl-cu13 or, for CUDA 12, "
            "nvidia-nccl-cu12, or set BARACUDA_NCCL_LIBRARY") from error
    return found.abs_path or "libnccl.so.2"


def load():
    """Bind NCCL now (idempotent); returns its version as an int, e.g. 22809 for 2.28.9."""
    cdef int32_t number = 0
    path = library_path()
    check(c_api.baracuda_nccl_load(os.fsencode(path)))
    check(c_api.baracuda_nccl_version(&number))
    return number


def probe():
    """What ``info`` shows: dict with found, path, version ("2.28.9"), reason. Never raises."""
    try:
        number = load()
    except (UnsupportedError, OSError) as error:
        return {"found": False, "path": None, "version": None, "reason": str(error)}
    version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return {"found": True, "path": library_path(), "version": version, "reason": ""}
