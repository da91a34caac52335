"""Rings by copy engine in other surroundings: one visible GPU a rank, one connection, an unloaded
kernel behind a wait, beside collectives, at the interpreter's end, and what is said of buffers.

One process per rank, all on one GPU where a test does not say otherwise.
"""

import itertools
from pathlib import Path

import pytest
from helpers.fault_cases import ERRORS, FaultyRing
from helpers.rank_pool import RankPool
from helpers.ring_files import SHAPE, check, ring_task

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank]

WAITS = ("event", "value", "gate")
WORKER = Path(__file__).parent / "peer_worker.py"
NOT_REGISTERED = "the receive buffers are not registered"


@pytest.fixture(scope="module")
def pool(torch):
    ranks = RankPool(2, WORKER, exchange="auto")
    yield ranks
    ranks.close()


@pytest.mark.multi_gpu(2)
def test_one_visible_gpu_per_rank(torch):
    ranks = RankPool(2, device_each="visible", exchange="peer")
    try:
        for wait in WAITS:
            answers = ranks.join(wait=wait)
            assert [a["exchange"] for a in answers] == [["peer"] * 2] * 2
            for graph in (False, True):
                task = ring_task(ranks, "bf16", rows=512, register=True, graph=graph, runs=10)
                check(torch, ranks, task)
    finally:
        ranks.close()


@pytest.mark.multi_gpu(4)
def test_a_mixed_ring_of_four_gpus(torch):
    ranks = RankPool(4, device_each=True, exchange="auto")
    try:
        for nccl in ((), (0,), (1, 2)):
            chosen = ["nccl" if r in nccl else "auto" for r in range(4)]
            answers = ranks.join(exchange=chosen, wait="gate")
            expected = ["nccl" if r in nccl or (r + 1) % 4 in nccl else "peer" for r in range(4)]
            assert answers[0]["exchange"] == expected
            for options in ({"staged": True}, {"graph": True}):
                task = ring_task(ranks, "bf16", rows=512, register=True, runs=10, **options)
                check(torch, ranks, task)
    finally:
        ranks.close()


@pytest.mark.parametrize("size", [2, 3])
def test_one_connection_to_the_device(torch, size):
    """All streams of a process share one hardware queue: a wait in it holds up what is behind. So on
    the caller's stream of either priority, for the ring's own is of the higher."""
    ranks = RankPool(
        size, WORKER, exchange="peer", environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    )
    try:
        for wait in WAITS:
            ranks.join(wait=wait)
            for priority, graph in itertools.product((0, -1), (False, True)):
                task = ring_task(ranks, "bf16", rows=256, register=True, graph=graph, runs=6)
                check(torch, ranks, task | {"priority": priority})
            if size == 2:
                ranks.run({"do": "unloaded"}, seconds=40)
    finally:
        ranks.close()


@pytest.mark.parametrize("wait", WAITS)
def test_an_abort_with_an_unloaded_kernel_behind_the_wait(pool, wait):
    pool.join(exchange="peer", wait=wait)
    first, second = pool.run({"do": "unloaded"}, seconds=40)
    # Loading it may wait for the stream, which the abort releases.
    assert first["launched"] < 5 and first["seconds"] < 8, first
    assert first["error"] == "CommunicatorError" and first["state"] != "healthy", first
    assert second["state"] != "healthy"


def test_ctrl_c_ends_a_collective_of_set_up(pool):
    pool.join(exchange="auto", wait="gate")
    answer = pool.run({"do": "interrupted"}, seconds=40)[0]
    assert answer["error"] == "KeyboardInterrupt" and answer["seconds"] < 3, answer
    assert answer["state"] != "healthy"


@pytest.mark.parametrize("wait", WAITS)
def test_beside_another_communicators_collectives(pool, wait):
    pool.join(exchange="peer", wait=wait)
    shape = {**SHAPE, "query_len": 512}
    task = {"do": "prefetch", "shape": shape, "world_size": 2, "runs": 30}
    for answer in pool.run(task, seconds=100):
        assert answer == {"differing": 0, "right": True}


def test_auto_says_of_a_run_that_its_buffers_are_not_registered(pool):
    pool.join(exchange="auto", wait="gate")
    for answer in pool.run({"do": "unregistered"}):
        assert answer["can"] == answer["ran"] == ""
        assert answer["before"] == [["nccl", NOT_REGISTERED]] * 2
        assert answer["after"] == [["peer", ""]] * 2


def test_peer_refuses_a_run_whose_buffers_are_not_registered(pool):
    pool.join(exchange="peer", wait="gate")
    for answer in pool.run({"do": "unregistered"}):
        for error in (answer["can"], answer["ran"]):
            assert error.startswith("InvalidProblemError") and NOT_REGISTERED in error
        assert answer["after"] == [["peer", ""]] * 2


# Sums that travel behind the steps: by one launch a step or two, added by the launch or the loop.
SUMS = [{"parts": p, "launch_adds": adds} for p in (1, 2) for adds in (False, True)]


@pytest.mark.parametrize("wait", range(3))
def test_what_travels_behind_the_steps_goes_by_peer_too(pool, wait):
    token = pool.run({"do": "unique_id"}, ranks=[0])[0]["unique_id"]
    task = {"do": "sums", "rings": SUMS, "world_size": 2, "unique_id": token, "wait": wait}
    for answer in pool.run(task, seconds=60):
        assert answer["right"] == [True] * 8


@pytest.mark.parametrize("wait", range(3))
def test_without_any_one_wait_the_answer_is_wrong(pool, wait):
    """On real streams, with everybody else late."""
    token = pool.run({"do": "unique_id"}, ranks=[0])[0]["unique_id"]
    task = {"do": "left_out", "world_size": 2, "unique_id": token, "wait": wait, "waits": 0}
    whole = pool.run(task, seconds=60)
    assert all(answer["found"][0]["right"] for answer in whole), whole
    kinds = whole[0]["found"][0]["waited"]
    assert {"granted", "full"} <= set(kinds)
    answers = pool.run(task | {"waits": len(kinds)}, seconds=60)
    harmless = [
        number
        for number in range(len(kinds))
        if all(answer["found"][1 + number]["right"] for answer in answers)
    ]
    # Of two ranks the first grant says all: nothing is received into a buffer twice. A run from one
    # stream needs no other's end. What the caller's stream waits for is needed each time.
    arrival = "full" if wait == 0 else "arrived"
    needed = {kinds.index("granted"), *(n for n, kind in enumerate(kinds) if kind == arrival)}
    assert len(needed) >= 3
    assert not needed & set(harmless), (kinds, harmless, answers)


@pytest.mark.parametrize("wait", ["event", "gate"])
@pytest.mark.parametrize("how", ["unused", "after runs", "in a run"])
def test_nothing_hangs_at_the_interpreters_end(torch, how, wait):
    ranks = RankPool(2, WORKER, exchange="peer", wait=wait)
    try:
        codes = ranks.leave({"do": "leave", "how": how}, seconds=30)
        assert codes == [0, 0], codes
    finally:
        ranks.close()


@pytest.mark.parametrize("case", ["SIGKILL", "SIGSTOP", "unequal"])
@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=pytest.mark.multi_gpu(size)) for size in (2, 4)]
)
def test_a_rank_fails_with_a_gpu_each(torch, size, case):
    """Five of five."""
    restarts = 4 if case == "SIGKILL" else 0
    with FaultyRing(
        size, restarts=restarts, exchange="peer", wait="gate", device_each=True
    ) as ring:
        for _ in range(5):
            answers = ring.run(case, register=True)
            assert len(answers) == size - 1
            for answer in answers:
                assert answer.error in ERRORS[case], answer
                assert answer.seconds < ring.timeout + 5, answer
                assert answer.state != "healthy" and answer.again == "CommunicatorError", answer
