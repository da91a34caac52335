"""Host time of C calls without Python around them (time_calls.cpp)."""

from __future__ import annotations

import ctypes as ct
from functools import cache
from typing import Any

from . import ring_abi as abi
from .host_abi import Params


class TimeCalls:
    def __init__(self) -> None:
        self._timer = ct.CDLL(abi.build_helper("time_calls.cpp", *abi.LIVE_STEPS))
        self._timer.time_launches.restype = self._timer.time_loop.restype = ct.c_double
        self._timer.time_launches.argtypes = [
            ct.c_void_p, ct.POINTER(Params), ct.c_int32, ct.c_void_p, ct.c_int,
        ]  # fmt: skip
        self._timer.time_loop.argtypes = [ct.c_void_p] * 3 + [ct.c_int32, ct.c_int]

    def launches(self, params: Any, kernel: int, stream: int | None, calls: int) -> float:
        """Microseconds of one attention step's launch."""
        step = ct.cast(abi.library().baracuda_attention_step, ct.c_void_p)
        return self._answer(self._timer.time_launches(step, params, kernel, stream, calls))

    def loop(self, ranks: int, calls: int) -> float:
        """Microseconds of host time of the ring's loop alone, for a step of one rank."""
        lib = abi.library()
        functions = (
            ct.cast(f, ct.c_void_p)
            for f in (
                lib.baracuda_ring_run, lib.baracuda_ring_schedule, lib.baracuda_send_recv_exchange
            )
        )  # fmt: skip
        return self._answer(self._timer.time_loop(*functions, ranks, calls))

    def _answer(self, microseconds: float) -> float:
        assert microseconds >= 0, abi.last_failure()
        return microseconds


@cache
def time_calls() -> TimeCalls:
    return TimeCalls()
