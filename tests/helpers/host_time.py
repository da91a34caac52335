"""The host time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def microseconds(torch: Any, call: Callable[[], Any], calls: int) -> float:
    """Mean host time of a call that only enqueues, the GPU idle before it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    stop = time.perf_counter()
    torch.cuda.synchronize()
    return (stop - start) / calls * 1e6
