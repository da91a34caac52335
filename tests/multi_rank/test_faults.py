"""A rank that does not come: the others get a typed error in time, and nobody hangs."""

import time

import pytest
from helpers.fault_cases import CASES, HEALTHY, FaultyRing
from helpers.rank_pool import RankPool

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank]

_DEADLINE = 5.0
# From the deadline to the error: the watchdog's and NCCL's abort.
_GRACE = 20.0


@pytest.fixture
def pair(torch):
    ranks = RankPool(2)
    yield ranks
    ranks.close()


def test_a_rank_that_never_runs(pair):
    started = time.monotonic()
    answer = pair.run({"do": "run_alone", "seconds": _DEADLINE}, ranks=[0], seconds=90)[0]
    assert answer["error"] == "NcclTimeoutError" and answer["rank"] == 0, answer
    assert time.monotonic() - started < _DEADLINE + _GRACE
    assert answer["state"] in ("failed", "aborted")
    assert answer["again"] == "CommunicatorError", "a failed communicator refuses further use"


def test_a_rank_that_never_joins(pair):
    started = time.monotonic()
    answer = pair.run({"do": "join_alone", "seconds": _DEADLINE}, ranks=[0], seconds=90)[0]
    assert answer["error"] == "NcclTimeoutError", answer
    assert time.monotonic() - started < _DEADLINE + _GRACE


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_rank_that_dies(pair, direction):
    pair.kill(1)
    started = time.monotonic()
    task = {"do": "run_alone", "seconds": _DEADLINE, "direction": direction}
    answer = pair.run(task, ranks=[0], seconds=90)[0]
    assert answer["error"] in ("NcclTimeoutError", "NcclError"), answer
    assert time.monotonic() - started < _DEADLINE + _GRACE


@pytest.mark.endurance
@pytest.mark.parametrize("exchange", ["nccl", "peer"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_four_ranks_of_which_one_fails(torch, case, direction, exchange):
    """Killed, stopped or wrong in the middle of it: the others all end with the same typed errors,
    whatever moves the chunks."""
    with FaultyRing(exchange=exchange) as ring:
        answers = ring.run(case, direction=direction, register=exchange == "peer")
    assert len(answers) == 3
    for answer in answers:
        assert answer.error in CASES[case], answer
        assert answer.seconds < ring.timeout + 5
        # What every rank finds before its first run breaks nothing.
        healthy = case in HEALTHY
        assert (answer.state == "healthy") == healthy, answer
        assert healthy or answer.again == "CommunicatorError", answer
