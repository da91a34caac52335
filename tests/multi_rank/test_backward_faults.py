"""A rank that dies or stops in the middle of backward runs, on two GPUs: five of five times the other gets
a typed error within the deadline."""

import pytest
from helpers.fault_cases import CASES, FaultyRing

pytestmark = [
    pytest.mark.gpu, pytest.mark.multi_rank, pytest.mark.multi_gpu(2), pytest.mark.endurance,
]  # fmt: skip

RINGS = 5
# From the deadline to the error: the abort.
GRACE = 5.0


@pytest.mark.parametrize("exchange", ["nccl", "peer"])
@pytest.mark.parametrize("case", ["SIGKILL", "SIGSTOP"])
def test_a_rank_of_two_fails_in_a_backward_run(torch, exchange, case):
    restarts = RINGS - 1 if case == "SIGKILL" else 0
    with FaultyRing(2, restarts=restarts, device_each=True, exchange=exchange) as ring:
        for number in range(RINGS):
            (answer,) = ring.run(case, direction="backward", register=exchange == "peer")
            assert answer.error in CASES[case], (number, answer)
            assert answer.seconds < ring.timeout + GRACE, (number, answer)
            assert answer.state != "healthy" and answer.again == "CommunicatorError", answer
