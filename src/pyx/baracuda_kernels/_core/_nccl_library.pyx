# cython: language_level=3
"""Finds and loads libnccl. It is loaded by the first communicator."""

import os

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core._errors import UnsupportedError


def library_path():
    """Path of the NCCL library that is loaded, or that would be loaded.

    ``BARACUDA_NCCL_LIBRARY`` if set; else the copy that :mod:`cuda.pathfinder` finds: one that a
    framework has already loaded, that of the nvidia-nccl wheel, or that of the system.

    Raises
    ------
    UnsupportedError
        There is none; the message says what to install.
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
    """Load NCCL if it is not loaded. Returns its version as an int, such as 22809 for 2.28.9."""
    cdef int32_t number = 0
    path = library_path()
    check(c_api.baracuda_nccl_load(os.fsencode(path)))
    check(c_api.baracuda_nccl_version(&number))
    return number


def probe():
    """Dict for ``info``: found, path, version (such as "2.28.9"), reason. Never raises."""
    try:
        number = load()
    except (UnsupportedError, OSError) as error:
        return {"found": False, "path": None, "version": None, "reason": str(error)}
    version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return {"found": True, "path": library_path(), "version": version, "reason": ""}
