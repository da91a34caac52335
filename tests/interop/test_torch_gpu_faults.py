"""A rank of PyTorch's ring that dies, stops or compiles anew in the middle of training, on two GPUs.

Five of five times the other gets a typed error within its deadline, or goes on."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.rank_pool import RankPool

from .conftest import WORKER

pytestmark = [
    pytest.mark.gpu, pytest.mark.multi_rank, pytest.mark.multi_gpu(2), pytest.mark.endurance,
    pytest.mark.framework("torch"),
]  # fmt: skip

TRIALS = 5
DEADLINE = 3.0
# From the deadline to the error: the abort.
GRACE = 5.0
ERRORS = ("NcclTimeoutError", "NcclError", "CommunicatorError")


def pair_of(exchange):
    # Two GPUs of a host use the peer exchange by default.
    environment = {"BARACUDA_EXCHANGE": "nccl" if exchange == "nccl" else "auto"}
    return RankPool(2, WORKER, backend="nccl", device_each=True, environment=environment)


def fail_once(exchange, fault, number):
    """The outcome of the other rank. The victim fails at the start of a backward, or anywhere."""
    pair = pair_of(exchange)
    try:
        task = {"do": "endure_steps", "seconds": DEADLINE, "victim": 1}
        meanwhile = None
        if number % 2:
            task["fault"] = fault
        else:

            def meanwhile():
                warm, end = Path(pair.folder.name) / "warm", time.monotonic() + 60
                while not warm.exists() and time.monotonic() < end:
                    time.sleep(0.05)
                time.sleep(0.1 * number)
                pair.signal(1, getattr(signal, fault))

        (answer,) = pair.run(task, meanwhile=meanwhile, victim=1, seconds=60)
        return answer
    finally:
        for rank in range(2):  # one is gone, and the group of the other is broken
            pair.kill(rank)
        pair.close()


@pytest.mark.parametrize("exchange", ["nccl", "peer"])
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_a_rank_that_fails_in_a_step(torch, exchange, fault):
    with ThreadPoolExecutor(TRIALS) as pool:
        answers = list(pool.map(lambda n: fail_once(exchange, fault, n), range(TRIALS)))
    for answer in answers:
        assert answer["error"] in ERRORS and answer["again"] in ERRORS, answer
        assert answer["exchange"] == [exchange] * 2, answer
        assert answer["steps"] >= 3 and answer["seconds"] < DEADLINE + GRACE, answer


@pytest.mark.parametrize("exchange", ["nccl", "peer"])
def test_a_rank_that_compiles_anew_alone(torch, exchange):
    pair = pair_of(exchange)
    try:
        task = {"do": "recompiles_alone", "odd_rank": 1, "steps": 1 + TRIALS}
        for answer in pair.run(task, seconds=200):
            # dq's sum has no order.
            assert answer["off"] < 1e-3 and not answer["zero"], answer
            assert answer["steps"] == 1 + TRIALS, answer
    finally:
        pair.close()


@pytest.mark.parametrize(
    ("exchange", "what", "own"),
    [
        ("nccl", "out of memory", "OutOfMemoryError"),
        ("peer", "out of memory", "OutOfMemoryError"),
        ("peer", "no room", "CudaError"),
    ],
)
def test_a_rank_out_of_memory_ends_the_call_of_the_other(torch, exchange, what, own):
    pair = pair_of(exchange)
    task = {"do": "one_fails", "what": what, "gradient": False, "within": "", "odd_rank": 1}
    try:
        other, odd = pair.run(task, seconds=90)
    finally:
        for rank in range(2):  # the group may be broken
            pair.kill(rank)
        pair.close()
    assert odd["error"] == own, odd
    assert other["error"] == "CommunicatorError" and own in other["message"], other
    assert other["seconds"] < DEADLINE + GRACE, other
