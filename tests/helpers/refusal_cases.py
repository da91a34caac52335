"""A refusal or a fault of one rank of an NCCL ring, and Ctrl-C, end the waits of the other ranks.

Over a fake NCCL. Run as communicator_cases.py is.
"""

import glob
import os
import signal
import threading
import time

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels.testing import attention

from .communicator_cases import (
    HOST,
    FakeMpi,
    arguments,
    fake,  # noqa: F401 - a fixture of these tests too
    make_ring,
    plan_of,
    problem,
    run,
)
from .failing_launches import failing_launches
from .gradients import draw
from .rank_threads import on_ranks
from .ring_gradients import HostGradients

RANKS, ODD = 3, 2
SOON = 2.0  # a tenth of a second is promised; the deadlines here are 20


def is_right(y, x):
    return abs(bk.unshard(y) - attention(*x, is_causal=True)[0]).max() < 1e-12


def close(comms):
    on_ranks(len(comms), lambda rank: comms[rank].close())


def bad_arguments(plan, x, world_size, rank):
    """Arguments whose q is one row short."""
    q, k, v = (bk.shard(a, world_size)[rank].copy() for a in x)
    return bk.RingAttentionArgs(q=q[:, :, 1:], k=k, v=v, y=q.copy())


def refused_by_one(call, comms, x, plan):
    """Every rank's result of a call, which the odd one's arguments make it refuse at first."""
    odd = bad_arguments(plan, x, RANKS, ODD)
    with pytest.raises(bk.InvalidProblemError, match="^q: got shape"):
        call(comms[ODD], odd)
    rest = [arguments(plan, x, RANKS, rank)[0] for rank in range(ODD)]
    return on_ranks(ODD, lambda rank: call(comms[rank], rest[rank]))


@pytest.mark.parametrize("what", ["run", "validate"])
def test_before_the_others_have_begun_nothing_is_sent(fake, what):  # noqa: F811
    comms, x, plan = make_ring(RANKS), problem(), plan_of(RANKS)

    def call(comm, args):
        return plan.run(HOST, comm, args) if what == "run" else plan.validate(comm, args)

    groups = fake.fake_nccl_count(b"ncclGroupStart")
    for error in refused_by_one(call, comms, x, plan):
        assert type(error) is bk.InvalidProblemError and str(error).startswith("rank 2: q: got")
    assert fake.fake_nccl_count(b"ncclGroupStart") == groups
    # The ring is healthy, and its ranks have counted the same calls.
    assert is_right(run(plan, comms, x), x)
    assert {comm.state for comm in comms} == {"healthy"}
    close(comms)


@pytest.mark.parametrize("what", ["run", "validate"])
def test_where_one_has_begun_the_ring_fails_on_all(fake, what):  # noqa: F811
    comms, x, plan = make_ring(RANKS), problem(), plan_of(RANKS)
    args = [arguments(plan, x, RANKS, rank)[0] for rank in range(ODD)]
    groups = fake.fake_nccl_count(b"ncclGroupStart")
    refused, ended = [], []

    def work(rank):
        try:
            if rank == ODD:
                while fake.fake_nccl_count(b"ncclGroupStart") < groups + ODD:
                    time.sleep(0.001)
                refused.append(time.monotonic())
                odd = bad_arguments(plan, x, RANKS, ODD)
                return plan.run(HOST, comms[ODD], odd) if what == "run" else plan.validate(
                    comms[ODD], odd)
            if what == "run":
                return plan.run(HOST, comms[rank], args[rank])
            return plan.validate(comms[rank], args[rank])
        finally:
            ended.append(time.monotonic())

    results = on_ranks(RANKS, work)
    assert all(type(r) is bk.InvalidProblemError for r in results), results
    assert all("rank 2: q: got shape" in str(r) for r in results[:ODD])
    assert max(ended) - refused[0] < SOON
    end = time.monotonic() + SOON
    while {comm.state for comm in comms} != {"aborted"} and time.monotonic() < end:
        time.sleep(0.005)
    for result in run(plan, comms, x):
        assert isinstance(result, bk.CommunicatorError), result
    close(comms)


@pytest.mark.parametrize("step", range(RANKS))
def test_a_launch_that_fails_in_a_backward_ends_the_ring(step):
    x = draw("f32", 0, heads=2, kv_heads=1, query_len=12, head_dim=16)
    ring = HostGradients(x, RANKS)
    ring.run()
    expected = [[g.copy() for g in rank.gradients] for rank in ring.ranks]
    ring.poison()
    comms, start = make_ring(RANKS), time.monotonic()
    with failing_launches("backward", ODD, step):
        raised = on_ranks(RANKS, lambda rank: ring.plan.run(HOST, comms[rank], ring.args[rank]))
    assert time.monotonic() - start < SOON
    assert isinstance(raised[ODD], bk.CudaError) and raised[ODD].call == "launch"
    assert raised[(ODD + 1) % RANKS] is not None
    for rank, error in enumerate(raised):
        if error is None:  # its sums were complete
            assert all(map(np.array_equal, ring.ranks[rank].gradients, expected[rank]))
        elif rank != ODD:
            assert type(error) is bk.CommunicatorError
            assert f"rank {ODD} ended the ring: launch: " in str(error), error
    end = time.monotonic() + SOON
    while {comm.state for comm in comms} != {"aborted"} and time.monotonic() < end:
        time.sleep(0.005)
    again = on_ranks(RANKS, lambda rank: ring.plan.run(HOST, comms[rank], ring.args[rank]))
    assert all(type(error) is bk.CommunicatorError for error in again), again
    close(comms)


def test_a_launch_that_fails_in_a_forward_leaves_the_ring_healthy():
    comms, x, plan = make_ring(RANKS), problem(), plan_of(RANKS)
    with failing_launches("forward", ODD, 1):
        results = run(plan, comms, x)
    assert isinstance(results[ODD], bk.CudaError)
    exact = bk.shard(attention(*x, is_causal=True)[0], RANKS)
    assert all(abs(results[rank] - exact[rank]).max() < 1e-12 for rank in range(ODD))
    assert {comm.state for comm in comms} == {"healthy"}
    assert is_right(run(plan, comms, x), x)
    close(comms)


def test_a_deadline_and_an_abort_of_one_rank_are_told_to_the_others():
    """To a rank between two calls, too: it raises the reason once."""
    for aborts in (False, True):
        token = bk.UniqueId.new()
        comms = on_ranks(RANKS, lambda rank, token=token: bk.Communicator.init_rank(
            RANKS, token, rank, device="host", timeout=0.3 if rank == 0 else 20.0))
        x, plan = problem(), plan_of(RANKS)
        args = [arguments(plan, x, RANKS, rank)[0] for rank in range(RANKS)]
        start = time.monotonic()

        def work(rank, comms=comms, plan=plan, args=args, aborts=aborts):
            if rank == 0 and aborts:
                return comms[0].abort()
            return None if rank == ODD else plan.run(HOST, comms[rank], args[rank])

        late, told, _ = on_ranks(RANKS, work)
        assert time.monotonic() - start < SOON
        kind = bk.CommunicatorError if aborts else bk.NcclTimeoutError
        assert aborts or type(late) is kind and late.rank == 0
        assert type(told) is kind and "rank 0 ended the ring: " in str(told), told
        while comms[ODD].state == "healthy" and time.monotonic() - start < SOON:
            time.sleep(0.005)
        with pytest.raises(kind, match="rank 0 ended the ring: "):
            plan.run(HOST, comms[ODD], args[ODD])
        for rank in range(RANKS):
            with pytest.raises(bk.CommunicatorError, match="after an earlier error"):
                plan.run(HOST, comms[rank], args[rank])
        close(comms)


def test_all_ranks_refuse_alike():
    comms, x, plan = make_ring(RANKS), problem(), plan_of(RANKS)
    end = time.monotonic() + 0.3
    calls = 0
    while calls < 150 or time.monotonic() < end:  # more than a rank remembers
        calls += 1
        for result in on_ranks(RANKS, lambda rank: plan.run(
                HOST, comms[rank], bad_arguments(plan, x, RANKS, rank))):
            assert type(result) is bk.InvalidProblemError
    time.sleep(0.12)
    assert {comm.state for comm in comms} == {"healthy"}
    assert is_right(run(plan, comms, x), x)
    close(comms)


def test_several_refusals_before_the_others_come():
    comms, x, plan = make_ring(RANKS), problem(), plan_of(RANKS)
    errors = [bk.UnsupportedError("window: got 8"), bk.MisalignedOperandError("q: is odd"),
              bk.CommunicatorError("gone"), bk.BufferTooSmallError(8, 4, "y")]
    for error in errors:
        comms[ODD].refuse(error)
    time.sleep(0.12)
    for error in errors:
        kind = type(error) if not isinstance(error, bk.BufferTooSmallError) else (
            bk.InvalidProblemError)
        for result in run(plan, comms[:ODD], [a[:, :, :8] for a in x]):
            assert type(result) is kind and "rank 2: " in str(result), result
    assert is_right(run(plan, comms, x), x)
    with pytest.raises(bk.InvalidProblemError, match="error: got str"):
        comms[0].refuse("no")
    close(comms)


def test_what_is_no_timeline_is_refused_for_all():
    comms, x, plan = make_ring(RANKS), problem(), plan_of(RANKS)
    args = [arguments(plan, x, RANKS, rank)[0] for rank in range(RANKS)]
    results = on_ranks(RANKS, lambda rank: plan.run(
        HOST, comms[rank], args[rank], timeline="none" if rank == ODD else None))
    assert all(isinstance(r, bk.BaracudaError) for r in results), results
    close(comms)


def test_rings_that_were_split_off_and_borrowed_ones():
    comms, x, plan = make_ring(4), problem(), plan_of(2)
    halves = on_ranks(4, lambda rank: comms[rank].split(rank % 2, rank))
    handles = [half.handle for half in halves]
    borrowed = [None] * 4
    for first in (0, 1):
        pair = [first, first + 2]
        for rank, comm in zip(pair, on_ranks(2, lambda r, pair=pair: bk.Communicator.from_handle(
                handles[pair[r]], device="host")), strict=True):
            borrowed[rank] = comm
    for ring in (halves, borrowed):
        even, odd = ring[::2], ring[1::2]
        even[1].refuse(bk.UnsupportedError("none"))
        assert is_right(run(plan, odd, x), x)
        with pytest.raises(bk.UnsupportedError, match="rank 1: none"):
            plan.run(HOST, even[0], arguments(plan, x, 2, 0)[0])
        assert is_right(run(plan, even, x), x)
    close(borrowed)
    close(halves)
    close(comms)


def left_in_shared_memory(before):
    """What is there since `before`, and stays: another process's rings come and go."""
    end, left = time.monotonic() + 20, set(glob.glob("/dev/shm/baracuda-*")) - before
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left &= set(glob.glob("/dev/shm/baracuda-*"))
    return left


def test_nothing_is_left_in_shared_memory():
    before = set(glob.glob("/dev/shm/baracuda-*"))
    comms = make_ring(RANKS)
    assert not left_in_shared_memory(before)
    close(comms)
    with pytest.raises(bk.NcclTimeoutError):
        bk.Communicator.init_rank(2, bk.UniqueId.new(), 0, device="host", timeout=0.1)
    assert not left_in_shared_memory(before)


@pytest.mark.parametrize("odd", [0, 1, 2])
@pytest.mark.parametrize("wrong", [{"max_ctas": 99}, {"timeout": -1}, {"device": "disk"}])
def test_what_keeps_one_rank_from_joining_is_told_to_all(odd, wrong):
    box, barrier = [], threading.Barrier(RANKS)
    start = time.monotonic()
    results = on_ranks(RANKS, lambda rank: bk.Communicator.from_mpi(
        FakeMpi(rank, RANKS, box, barrier), **{"device": "host", **(wrong if rank == odd else {})}))
    assert time.monotonic() - start < SOON
    for rank, error in enumerate(results):
        kind = bk.InvalidProblemError if rank == odd else bk.CommunicatorError
        assert type(error) is kind and next(iter(wrong)) in str(error), results
        assert rank == odd or f"rank {odd} of 3 cannot join" in str(error)


@pytest.mark.parametrize("known", [False, True])
def test_the_torch_adapter_tells_the_others(known):
    """As on CUDA, whether the others compare a new problem or run one that they know."""
    torch = pytest.importorskip("torch")
    from baracuda_kernels.interop.torch._ring import Ring

    comms, x = make_ring(RANKS), problem()
    rings = [Ring(None, torch.device("cpu"), comm) for comm in comms]
    shards = [[torch.from_numpy(bk.shard(a, RANKS)[rank].copy()) for a in x]
              for rank in range(RANKS)]

    def attend():
        return on_ranks(RANKS, lambda rank: rings[rank].attend(
            *shards[rank], True, None, "CONTIGUOUS", False)[0].numpy())

    if known:
        assert is_right(attend(), x)
    refused = on_ranks(1, lambda _: rings[ODD].attend(
        shards[ODD][0], shards[ODD][1].float(), shards[ODD][2], True, None, "CONTIGUOUS", False))
    assert "must be of one dtype" in str(refused[0])
    for error in on_ranks(ODD, lambda rank: rings[rank].attend(
            *shards[rank], True, None, "CONTIGUOUS", False)):
        assert type(error) is bk.InvalidProblemError and "rank 2: q, k, v: got" in str(error)
    assert is_right(attend(), x)
    # All ranks find a difference, and compare again in the next call.
    for _ in range(2):
        results = on_ranks(RANKS, lambda rank: rings[rank].attend(
            *shards[rank], True, None, "STRIPED" if rank == ODD else "ZIGZAG", False))
        assert all(type(r) is bk.InvalidProblemError for r in results), results
    assert is_right(attend(), x)
    # A rank with a new problem compares, while the others run.
    start = time.monotonic()
    results = on_ranks(RANKS, lambda rank: rings[rank].attend(
        *shards[rank], rank != ODD, None, "CONTIGUOUS", False))
    assert all(isinstance(r, bk.BaracudaError) for r in results), results
    assert any("calls validate()" in str(r) for r in results)
    assert time.monotonic() - start < SOON
    close(comms)


def interrupted(call, after=0.2):
    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
    start = time.monotonic()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        timer.join()
    assert time.monotonic() - start < after + SOON


def test_ctrl_c_while_validate_waits_for_a_rank():
    comms, plan = make_ring(2), plan_of(2)
    interrupted(lambda: plan.validate(comms[0]))
    with pytest.raises(bk.CommunicatorError):
        plan.validate(comms[0])
    assert comms[0].state in ("failed", "aborted")
    comms[1].abort()
    close(comms)


def test_validate_ends_at_its_deadline():
    comms, plan = make_ring(2, timeout=0.4), plan_of(2)
    start = time.monotonic()
    with pytest.raises(bk.NcclTimeoutError):
        plan.validate(comms[0])
    assert time.monotonic() - start < 0.4 + SOON
    comms[1].abort()
    close(comms)


def test_ctrl_c_while_close_waits_for_the_other_ranks(fake):  # noqa: F811
    comm = make_ring(1)[0]
    fake.fake_nccl_hang(b"ncclCommDestroy", 0, 1)
    interrupted(comm.close)
    assert comm.state == "closed"
    comm.close()
    with pytest.raises(bk.CommunicatorError, match="closed"):
        comm.synchronize(HOST)
    fake.fake_nccl_release()
    time.sleep(0.1)
    fake.fake_nccl_reset()


def test_ctrl_c_while_the_last_reference_goes(fake):  # noqa: F811
    """No exception can be raised in a destructor: it is raised right after."""
    comms = make_ring(1)
    fake.fake_nccl_hang(b"ncclCommDestroy", 0, 1)

    def drop():
        comms.clear()
        time.sleep(1)

    interrupted(drop)
    fake.fake_nccl_release()
    time.sleep(0.1)
    fake.fake_nccl_reset()
