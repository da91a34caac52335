"""Whether a GPU can be used here, and if not, why."""

from __future__ import annotations

from baracuda_kernels._core import _info

# The oldest driver for code built by a toolkit of that major version.
_MINIMUM_DRIVER = {12: "525", 13: "580"}


def why_no_gpu() -> str:
    """Why no GPU can be used here, in one sentence; empty if one can."""
    build = _info.build_info()
    if not build["cuda_built"]:
        return "this build has no CUDA kernels (made with BARACUDA_CUDA=OFF)"
    needed, driver = build["cuda_runtime_version"], _info.driver_version()
    if driver == 0:
        return "no usable NVIDIA driver was found"
    if driver // 1000 < needed // 1000:
        least = _MINIMUM_DRIVER.get(needed // 1000, "a newer one")
        return (
            f"the driver serves CUDA up to {dotted(driver)}; this build, made with CUDA "
            f"{dotted(needed)}, needs driver {least} or later"
        )
    return "" if _info.devices() else "the driver shows no device"


def dotted(cuda: int) -> str:
    """``"13.0"`` for CUDA's 13000."""
    return f"{cuda // 1000}.{cuda % 1000 // 10}"
