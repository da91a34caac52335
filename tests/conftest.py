"""Markers, the capabilities they need, --require-gpu and --require-frameworks."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

# For `helpers`, whatever the import mode.
sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu",
        action="store_true",
        help="A test that lacks the GPU, NCCL or framework it needs fails instead of skipping.",
    )
    parser.addoption(
        "--require-frameworks",
        action="store_true",
        help="A test marked framework(...) fails instead of skipping where that is not installed.",
    )


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "gpu: needs a CUDA device, a build with CUDA, and torch for device memory",
        "multi_rank: runs one process per rank over NCCL, all on one GPU",
        "multi_gpu(n): needs n CUDA devices",
        "framework(*modules): needs these modules, of frameworks that the extra [test] leaves out",
    ):
        config.addinivalue_line("markers", line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for module in (name for mark in item.iter_markers("framework") for name in mark.args):
        if importlib.util.find_spec(module) is None:
            reason = f"capability: {module} is not installed"
            if item.config.getoption("--require-frameworks"):
                pytest.fail(f"--require-frameworks: {reason}", pytrace=False)
            pytest.skip(reason)
    missing = _missing_capability(item)
    if missing is None:
        return
    if item.config.getoption("--require-gpu"):
        pytest.fail(f"--require-gpu: {missing}", pytrace=False)
    pytest.skip(missing)


def _missing_capability(item: pytest.Item) -> str | None:
    marks = {mark.name: mark for mark in item.iter_markers()}
    if not marks.keys() & {"gpu", "multi_rank", "multi_gpu"}:
        return None
    from baracuda_kernels._core import _info, _nccl_library

    if not _info.build_info()["cuda_built"]:
        return "needs a build with CUDA"
    devices = len(_info.devices())
    needed = marks["multi_gpu"].args[0] if "multi_gpu" in marks else 1
    if devices < needed:
        return f"needs {needed} CUDA device(s), found {devices}"
    if importlib.util.find_spec("torch") is None:
        return "needs torch for device memory"
    if "multi_rank" in marks and not _nccl_library.probe()["found"]:
        return "needs NCCL"
    return None


@pytest.fixture(scope="session")
def torch():
    """The torch module, for gpu tests alone: device memory and streams."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch as module

        module.cuda.init()
    return module
