"""`--record-bits FILE`: hashes of the answers that tests compare with float64, to `diff` builds.

A line of FILE is one call of `assert_close` or `assert_gradients`: the test, the call's number in
it, family and dtype, and a hash of each array by name, or "varies" if the family's kernels do not
promise the same bits twice. Lines are sorted, so they do not depend on the order of the tests or
the number of processes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baracuda_kernels import registry, testing

from .gradients import NAMES

_PROPERTY = "record-bits"


def same_examples() -> None:
    """Hypothesis draws the same in every run; to be called before tests are decorated."""
    import hypothesis
    from hypothesis.internal.conjecture import providers

    hypothesis.settings.register_profile("bits", derandomize=True, database=None)
    hypothesis.settings.load_profile("bits")
    # It tries constants of all code that is imported outside of site-packages, which two builds, or
    # two processes with other tests, do not share.
    if hasattr(providers, "is_local_module_file"):
        providers.is_local_module_file = lambda path: False


class RecordBits:
    """A plugin of pytest; it must be there before any test imports `baracuda_kernels.testing`."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._lines: list[Any] = []
        self._found: list[Any] = []  # of the test that runs
        varying = registry.named_skus(deterministic=False)
        self._varying = {(sku.direction.name, family) for _, family, sku in varying}
        self._wrap("assert_close", lambda y, exact_y, lse=None, *_: {"y": y, "lse": lse})
        self._wrap("assert_gradients", lambda got, *_: dict(zip(NAMES, got, strict=True)))

    def _wrap(self, name: str, arrays: Callable[..., dict[str, Any]]) -> None:
        check = getattr(testing, name)
        direction = "FORWARD" if name == "assert_close" else "BACKWARD"

        @functools.wraps(check)
        def recording(family: str, dtype: str, *given: Any, **options: Any) -> None:
            found: Any = "varies"
            if (direction, family) not in self._varying:
                found = {n: _hash(x) for n, x in arrays(*given).items() if x is not None}
            self._found.append([family, dtype, found])
            check(family, dtype, *given, **options)

        setattr(testing, name, recording)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._found = []
        # What a report carries comes from xdist's workers, too.
        item.user_properties.append((_PROPERTY, self._found))
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = dict(report.user_properties).get(_PROPERTY, [])
        if report.when == "teardown":
            self._lines += [[report.nodeid, i, *answer] for i, answer in enumerate(found)]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            lines = sorted(self._lines, key=lambda line: line[:2])
            self._path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _hash(x: Any) -> str:
    """Of what the array holds, wherever it lies; as float64, which holds every other dtype."""
    array = np.asarray(x.detach().cpu().double() if hasattr(x, "detach") else x, np.float64)
    return hashlib.sha256(f"{x.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()[:16]
