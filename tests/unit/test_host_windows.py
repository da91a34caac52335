"""The host family's steps below its plans: masks that no plan asks for yet, and the threads."""

import ctypes as ct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.host_abi import (
    CAUSAL,
    DTYPE,
    FIRST,
    LAST,
    PositionMap,
    contiguous,
    make_params,
    oracle,
    relative_error,
    striped,
    zigzag,
)
from helpers.ring_abi import ABORTED, build_helper

SOURCES = Path(__file__).parents[2] / "src" / "cuda"
TOLERANCE = {"f64": 1e-12, "f32": 2e-6, "bf16": 5e-3}


@pytest.fixture(scope="module")
def library():
    host = SOURCES / "attention" / "forward" / "host"
    sources = [
        host / name
        for name in ("cpu_quota.cpp", "family.cpp", "host_baseline.cpp", "thread_pool.cpp")
    ]
    sources += [SOURCES / "attention" / name for name in ("interval.cpp", "problem.cpp")]
    sources += [SOURCES / "common" / name for name in ("element.cpp", "error.cpp", "interrupt.cpp")]
    return ct.CDLL(build_helper("host_step.cpp", f"-I{SOURCES}", *map(str, sources)))


@pytest.fixture(scope="module")
def host_step(library):
    """Enqueues a step of the host family with any mask."""
    return library.host_step


class Case:
    """A random window over a chunk pair of a random ring."""

    def __init__(self, rng, element, layout):
        ranks, self.element = int(rng.integers(1, 5)), element
        self.rows, self.keys = int(rng.integers(1, 300)), int(rng.integers(1, 450))
        self.q_map = layout(int(rng.integers(ranks)), self.rows, ranks)
        self.k_map = layout(int(rng.integers(ranks)), self.keys, ranks)
        shift = int(rng.choice([0, 0, -3, -1000, 2**61, -(2**61)]))  # positions may be negative
        for at in (self.q_map, self.k_map):
            at.head, at.tail = at.head + shift, at.tail + shift
        self.flags = FIRST | LAST | CAUSAL * int(rng.integers(2))
        self.left, self.right = int(rng.choice([1, 2, 7, 50, 200])), int(rng.choice([0, 1, 5, 100]))
        head_dim = int(rng.choice([8, 33, 64]))
        self.q, self.k, self.v = (
            rng.standard_normal((1, 2, length, head_dim)).astype(DTYPE[element])
            for length in (self.rows, self.keys, self.keys)
        )

    def mask(self):
        rows = self.q_map.positions(self.rows)[:, None]
        keys = self.k_map.positions(self.keys)[None, :]
        seen = keys > rows - self.left
        if self.flags & CAUSAL:
            return seen & (keys <= rows)
        return seen & (keys <= rows + self.right) if self.right else seen

    def run(self, step, q, k, v, q_map):
        y, lse = np.full(q.shape, 77, q.dtype), np.full(q.shape[:3], 77, np.float32)
        params = make_params(
            q, k, v, y, lse, element=self.element, flags=self.flags, q_map=q_map, k_map=self.k_map
        )
        params.window_left, params.window_right = self.left, self.right
        assert step(ct.byref(params)) == 0
        return y, lse


@pytest.mark.parametrize("layout", [contiguous, zigzag, striped])
@pytest.mark.parametrize("element", TOLERANCE)
def test_windows(host_step, element, layout):
    rng = np.random.default_rng(11)
    for _ in range(40):
        case = Case(rng, element, layout)
        seen = case.mask()
        y, lse = case.run(host_step, case.q, case.k, case.v, case.q_map)
        expected, expected_lse = oracle(case.q, case.k, case.v, mask=seen)
        assert relative_error(y, expected) <= TOLERANCE[element]
        assert np.allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)

        # The bits of a row do not depend on its block.
        row = int(rng.integers(case.rows))
        at = PositionMap(int(case.q_map.positions(case.rows)[row]), 0, 1, 1)
        alone = np.ascontiguousarray(case.q[:, :, row : row + 1])
        assert np.array_equal(
            case.run(host_step, alone, case.k, case.v, at)[0][:, :, 0], y[:, :, row]
        )

        # NaN reaches exactly the rows that see it.
        key = int(rng.integers(case.keys))
        k, v = case.k.copy(), case.v.copy()
        k[:, :, key] = v[:, :, key] = np.nan
        again, _ = case.run(host_step, case.q, k, v, case.q_map)
        assert np.array_equal((again == y).all(axis=(0, 1, 3)), ~seen[:, key])


def test_an_abort_reaches_the_last_item_of_another_thread(library):
    flag = ct.c_int32(0)
    timer = threading.Timer(0.2, lambda: setattr(flag, "value", 1))
    start = time.monotonic()
    timer.start()
    assert library.host_slow_helper(ct.byref(flag)) == ABORTED
    assert time.monotonic() - start < 2
