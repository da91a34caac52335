"""Markers, the capabilities they need, and options of the test suite."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest

# For `helpers` in any import mode. `benchmarks` comes after installed packages.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu",
        action="store_true",
        help="A test that lacks the GPU, NCCL or framework it needs fails instead of skipping.",
    )
    parser.addoption(
        "--require-framework",
        action="append",
        default=[],
        metavar="NAME",
        help="A test of this framework fails instead of skipping where it is not installed.",
    )
    parser.addoption(
        "--share",
        type=share,
        default=(0, 1),
        metavar="I/N",
        help="Share I, from 0, of N: every Nth test, so that N runs side by side are all of them.",
    )
    parser.addoption(
        "--record-bits",
        type=Path,
        metavar="FILE",
        help="Write hashes of the answers that tests hold to float64, to compare two builds.",
    )


def share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError  # argparse reports the value
    return int(number), int(count)


@pytest.hookimpl(trylast=True)  # after -k and -m have deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, count = config.getoption("--share")
    if count > 1:
        config.hook.pytest_deselected(items=[x for i, x in enumerate(items) if i % count != number])
        items[:] = items[number::count]


def pytest_configure(config: pytest.Config) -> None:
    # These options are of this run. Some tests start pytest, and -n 2 would split those runs, too.
    os.environ.pop("PYTEST_ADDOPTS", None)
    for line in (
        "gpu: needs a CUDA device, a build with CUDA, and torch for device memory",
        "multi_rank: runs one process per rank over NCCL, all on one GPU by default",
        "multi_gpu(n): needs n CUDA devices",
        "endurance: takes many runs; an evidence part of its own",
        "device_memory: measures the device's free memory, so nothing else may run on the GPU",
        "framework(name): needs that Python package installed",
    ):
        config.addinivalue_line("markers", line)
    if (path := config.getoption("--record-bits")) is not None:
        from helpers.record_bits import RecordBits, same_examples

        same_examples()
        config.pluginmanager.register(RecordBits(path))
    # A shell without job control starts what it puts in the background so that it ignores SIGINT, and
    # its children inherit that. Many tests send SIGINT.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("framework"):
        (name,) = mark.args
        if not _installed(name):
            if name in item.config.getoption("--require-framework"):
                pytest.fail(f"--require-framework: {name} is not installed", pytrace=False)
            pytest.skip(f"{name} is not installed")
    missing = _missing_capability(item)
    if missing is None:
        return
    if item.config.getoption("--require-gpu"):
        pytest.fail(f"--require-gpu: {missing}", pytrace=False)
    pytest.skip(missing)


def _installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # an uninstaller may leave an empty folder


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
    """The torch module, for gpu tests only: device memory and streams."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch as module

        module.cuda.init()
    return module
