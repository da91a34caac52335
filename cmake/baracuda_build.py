"""PEP 517 backend: scikit-build-core, plus a CUDA compiler from PyPI where there is none.

The toolkit is a build requirement only when it is needed: not where nvcc is found by CUDACXX or
on PATH, and not for a host-only build (``-DBARACUDA_CUDA=OFF``).
"""

from __future__ import annotations

import os
import re
import shutil

from scikit_build_core.build import *
from scikit_build_core.build import (
    get_requires_for_build_editable as _requires_editable,
)
from scikit_build_core.build import (
    get_requires_for_build_wheel as _requires_wheel,
)

CUDA_TOOLKIT = "cuda-toolkit[nvcc,cccl]==13.0.*"
_OFF = re.compile(r"(OFF|0|NO|FALSE|N)", re.IGNORECASE)


def _cuda_switched_off(config_settings: dict | None) -> bool:
    settings = config_settings or {}
    values = [
        settings.get("cmake.define.BARACUDA_CUDA"),
        os.environ.get("SKBUILD_CMAKE_DEFINE_BARACUDA_CUDA"),
    ]
    arguments = [os.environ.get("CMAKE_ARGS", "")]
    for key in ("cmake.args", "SKBUILD_CMAKE_ARGS"):
        given = settings.get(key, os.environ.get(key, ""))
        arguments.extend([given] if isinstance(given, str) else given)
    for text in (*arguments, os.environ.get("SKBUILD_CMAKE_DEFINE", "")):
        values += re.findall(r"BARACUDA_CUDA(?::BOOL)?=(\w+)", text)
    return any(value is not None and _OFF.fullmatch(str(value)) for value in values)


def _toolkit(config_settings: dict | None) -> list[str]:
    if _cuda_switched_off(config_settings):
        return []
    if os.environ.get("CUDACXX") or shutil.which("nvcc"):
        return []
    return [CUDA_TOOLKIT]


def get_requires_for_build_wheel(config_settings=None):
    return [*_requires_wheel(config_settings), *_toolkit(config_settings)]


def get_requires_for_build_editable(config_settings=None):
    return [*_requires_editable(config_settings), *_toolkit(config_settings)]
