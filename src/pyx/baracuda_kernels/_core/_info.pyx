# cython: language_level=3
"""Facts of the build and of the machine."""

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core._errors import InvalidProblemError


def version():
    """Version of the compiled library."""
    return c_api.baracuda_version().decode()


def build_info():
    """Dict: version, source_hash, cuda_built, cuda_runtime_version, architectures, nvcc, cxx."""
    return {
        "version": version(),
        "source_hash": c_api.baracuda_source_hash().decode(),
        "cuda_built": bool(c_api.baracuda_cuda_built()),
        "cuda_runtime_version": c_api.baracuda_cuda_runtime_version(),
        "architectures": c_api.baracuda_architectures().decode().split(),
        "nvcc": c_api.baracuda_nvcc_version().decode(),
        "cxx": c_api.baracuda_cxx_compiler().decode(),
    }


def driver_version():
    """CUDA version that the driver supports, e.g. 13000; 0 without a driver."""
    cdef int32_t number = 0
    if c_api.baracuda_cuda_driver_version(&number) != c_api.BARACUDA_OK:
        return 0
    return number


def devices():
    """List of dicts, one per CUDA device: index, name, compute_capability, multiprocessors,
    max_shared_bytes, total_bytes. Empty without a usable driver."""
    cdef int32_t count = 0
    cdef int32_t i
    cdef c_api.baracuda_cuda_device info
    if c_api.baracuda_cuda_device_count(&count) != c_api.BARACUDA_OK:
        return []
    found = []
    for i in range(count):
        check(c_api.baracuda_cuda_device_info(i, &info))
        found.append({
            "index": i,
            "name": info.name.decode("utf-8", "replace"),
            "compute_capability": info.compute_capability,
            "multiprocessors": info.multiprocessors,
            "max_shared_bytes": info.max_shared_bytes,
            "total_bytes": info.total_bytes,
        })
    return found


def current_device():
    """Ordinal of the current CUDA device; -1 without a usable one."""
    cdef int32_t count = 0, device = 0
    if c_api.baracuda_cuda_device_count(&count) != c_api.BARACUDA_OK or count == 0:
        return -1
    check(c_api.baracuda_cuda_current_device(&device))
    return device


def compute_capability(int device):
    """Compute capability of a CUDA device, such as 90 for 9.0."""
    cdef c_api.baracuda_cuda_device info
    check(c_api.baracuda_cuda_device_info(device, &info))
    return info.compute_capability


def host_info():
    """Dict: isa ("avx512", "avx2" or "baseline") and threads of the host kernels."""
    return {"isa": c_api.baracuda_host_isa().decode(), "threads": c_api.baracuda_host_threads()}


cdef class HostProgress:
    """Progress of a thread's step on the host, for other threads to read."""

    cdef c_api.baracuda_progress words

    def __enter__(self):
        c_api.baracuda_watch_progress(&self.words)
        return self

    def __exit__(self, *exc_info):
        c_api.baracuda_watch_progress(NULL)

    @property
    def fraction(self):
        """Done part, 0 to 1, of the current step of the thread that entered the context; 0 between
        steps."""
        total = self.words.total
        return min(self.words.done / total, 1.0) if total > 0 else 0.0


def set_host_threads(threads):
    """Number of threads that the host kernels use from now on."""
    if not isinstance(threads, int) or threads < 1:
        raise InvalidProblemError(f"threads: got {threads!r}, must be an integer >= 1")
    check(c_api.baracuda_set_host_threads(threads))
