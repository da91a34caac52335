"""Rings whose hops go by the copy engines: the same bits as the local ring's, graphs, late ranks.

One process per rank, all on one GPU, or each on its own with BARACUDA_TEST_RANK_DEVICES=each.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.fault_cases import ERRORS, FaultyRing
from helpers.one_cause import assert_one_cause, cannot_be_by_peer
from helpers.rank_pool import RankPool
from helpers.ring_files import check, ring_task

import baracuda_kernels as bk

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank]

WAITS = ("event", "value", "gate")
LAYOUTS = (("contiguous", 192), ("zigzag", 157), ("striped", 64))


@pytest.fixture(scope="module", params=[2, 4, 8])
def pool(request, torch):
    ranks = RankPool(request.param, exchange="peer")
    yield ranks
    ranks.close()


@pytest.fixture(params=WAITS)
def peers(request, pool):
    answers = pool.join(exchange="peer", wait=request.param)
    assert [a["exchange"] for a in answers] == [["peer"] * pool.world_size] * pool.world_size
    return pool


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_against_float64_and_the_local_ring(torch, peers, is_causal, staged):
    for layout, rows in LAYOUTS:
        options = {"layout": layout, "is_causal": is_causal, "staged": staged, "register": True}
        check(torch, peers, ring_task(peers, "bf16", rows=rows, **options))


@pytest.mark.parametrize("staged", [False, True])
def test_graphs_replay(torch, peers, staged):
    for layout, rows in LAYOUTS[:2]:
        options = {"layout": layout, "staged": staged, "register": True}
        check(torch, peers, ring_task(peers, "bf16", rows=rows, graph=True, runs=9, **options))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("staged", [False, True])
def test_a_rank_that_is_late_by_runs(torch, peers, staged, graph):
    """The others run ahead, and every caller overwrites its scratch between runs."""
    options = {"staged": staged, "register": True, "graph": graph, "overwrite": True}
    task = ring_task(peers, "bf16", rows=128, runs=4, late_rank=1, late=0.4, **options)
    check(torch, peers, task)


@pytest.mark.parametrize("nccl", [(0,), (1, 2), (0, 1, 2, 3)])
def test_chosen_hops_by_nccl(torch, pool, nccl):
    if pool.world_size != 4:
        pytest.skip("a mixed ring of four")
    for wait in WAITS:
        answers = pool.join(exchange=["nccl" if r in nccl else "auto" for r in range(4)], wait=wait)
        expected = ["nccl" if r in nccl or (r + 1) % 4 in nccl else "peer" for r in range(4)]
        assert answers[2]["exchange"] == expected
        for staged in (False, True):
            task = ring_task(pool, "bf16", staged=staged, register=True, runs=3)
            check(torch, pool, task)


def test_buffers_that_are_not_registered_go_by_nccl(torch, pool):
    pool.join(exchange="auto", wait="event")
    check(torch, pool, ring_task(pool, "bf16"))


def test_forced_where_it_cannot_be(torch, pool):
    choice = ["peer"] + ["nccl"] * (pool.world_size - 1)
    # A rank that joins, or raises anything but an UnsupportedError, has no such answer.
    errors = [answer["error"] for answer in pool.join(exchange=choice, wait="event")]
    why = 'one of its ranks asked for exchange="nccl": rank 1'
    assert_one_cause(errors, cannot_be_by_peer(why, asked=0))
    pool.join(exchange="peer")


def test_memory_that_no_other_process_can_open(torch, pool):
    pytest.importorskip("cuda.core")
    pool.join(exchange="auto", wait="event")
    answers = pool.run({"do": "register_alien", "alien": pool.world_size - 1})
    assert {a["error"] for a in answers} == {"UnsupportedError"}
    assert all("pool" in a["message"] for a in answers)
    assert {a["state"] for a in answers} == {"healthy"}


@pytest.mark.multi_gpu(2)
@pytest.mark.parametrize("wait", WAITS)
def test_between_two_gpus(torch, wait):
    ranks = RankPool(2, device_each=True, exchange="peer", wait=wait)
    try:
        for staged in (False, True):
            for graph in (False, True):
                task = ring_task(ranks, "bf16", rows=1024, staged=staged, register=True)
                check(torch, ranks, task | {"graph": graph, "runs": 20})
    finally:
        ranks.close()


@pytest.mark.multi_gpu(2)
def test_ranks_of_one_process_go_by_nccl():
    with pytest.raises(bk.UnsupportedError, match="in one process"):
        bk.Communicator.init_all([0, 1], exchange="peer", timeout=60.0)
    comms = bk.Communicator.init_all([0, 1], exchange="auto", timeout=60.0)
    for comm in comms:
        assert [(hop.kind, hop.reason) for hop in comm.exchange] == [
            ("nccl", "its ranks are in one process")
        ] * 2
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda comm: comm.close(), comms))


@pytest.mark.endurance
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("case", ["SIGKILL", "SIGSTOP", "unequal"])
def test_four_ranks_of_which_one_fails(torch, case, wait):
    """Five of five: killed, stopped or with another problem, the others end with a typed error."""
    restarts = 4 if case == "SIGKILL" else 0
    with FaultyRing(restarts=restarts, exchange="peer", wait=wait) as ring:
        for _ in range(5):
            answers = ring.run(case, register=True)
            assert len(answers) == 3
            for answer in answers:
                assert answer.error in ERRORS[case], answer
                assert answer.seconds < ring.timeout + 5, answer
                assert answer.state != "healthy" and answer.again == "CommunicatorError", answer
