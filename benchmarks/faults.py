"""`faults` rows: one of four rank processes fails, and how long until the other three know.

Seconds from the fault (from the task, where a rank is wrong from the start) to the last rank's
typed error, the worst of five rings. The peer is the deadline that the runs were given; a rank that
ends without a typed error fails the part.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.rows import Row, row
from tests.helpers.fault_cases import CASES, RANKS, FaultyRing


def rows(
    cases: Iterable[str] = CASES, ranks: int = RANKS, rings: int = 5, device_each: bool = False
) -> list[Row]:
    """A row of each case, on one GPU or with a GPU for each rank; the cases run side by side, each
    with processes of its own.

    Raises
    ------
    AssertionError
        If a rank met another error than the case's, or did not end at all.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda case: _row(case, ranks, rings, device_each), cases))


def _row(case: str, ranks: int, rings: int, device_each: bool) -> Row:
    worst = 0.0
    restarts = rings - 1 if case == "SIGKILL" else 0
    with FaultyRing(ranks, restarts=restarts, device_each=device_each) as ring:
        for number in range(rings):
            for outcome in ring.run(case):
                if outcome.error not in CASES[case]:
                    raise AssertionError(f"{case}, ring {number}: {outcome}")
                worst = max(worst, outcome.seconds)
            print(f"{case}, ring {number + 1} of {rings}: {worst:.2f} s at most", flush=True)
    params: dict[str, Any] = {"case": case, "ranks": ranks, "rings": rings}
    if device_each:
        params["devices"] = ranks
    return row("faults", params, worst, {"timeout": ring.timeout})
