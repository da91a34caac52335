"""Objects that two threads or two runs share: refused, or right, and never another run's writes."""

import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels._core import _info
from baracuda_kernels.testing import attention

HOST = bk.Stream.host()


class Rank:
    """One rank's arrays and arguments."""

    def __init__(self, plan, x, world_size, rank):
        self.q, self.k, self.v = (bk.shard(a, world_size)[rank].copy() for a in x)
        self.y = np.full_like(self.q, np.nan)
        scratch = [np.empty(plan.kv_scratch_elements, self.q.dtype) for _ in range(2)]
        state = np.empty(plan.accumulator_scratch_bytes, np.uint8)
        self.args = bk.RingAttentionArgs(
            q=self.q, k=self.k, v=self.v, y=self.y, kv_scratch_a=scratch[0],
            kv_scratch_b=scratch[1], accumulator_scratch=state)


class Ring:
    """A local ring with a plan and everything it needs."""

    def __init__(self, rows=64, world_size=2, seed=0, ring=None, plan=None):
        rng = np.random.default_rng(seed)
        self.x = [rng.standard_normal((1, 2, rows, 32), np.float32) for _ in range(3)]
        shard = rows // world_size
        self.plan = plan or bk.RingAttentionPlan.select(
            HOST, bk.RingAttentionDescriptor(1, 2, shard, shard, 32))
        self.ring = ring or bk.LocalCommunicator.ring(world_size)
        self.ranks = [Rank(self.plan, self.x, world_size, r) for r in range(world_size)]
        self.args = [rank.args for rank in self.ranks]

    def run(self, **options):
        self.ring.run_all(HOST, self.plan, self.args, **options)

    def is_right(self):
        y = bk.unshard([rank.y for rank in self.ranks])
        return np.allclose(y, attention(*self.x)[0], atol=1e-5)

    def in_flight(self):
        """A thread that runs it and has begun."""
        thread = threading.Thread(target=self.run)
        thread.start()
        time.sleep(0.05)
        assert thread.is_alive()
        return thread


LONG = 6144  # rows: about a second of one thread


@pytest.fixture(autouse=True)
def one_thread():
    """So that a run takes its time on a machine of many cores, too."""
    before = _info.host_info()["threads"]
    _info.set_host_threads(1)
    yield
    _info.set_host_threads(before)


def test_a_refused_run_all_leaves_the_run_in_flight_alone():
    long = Ring(LONG)
    other = Ring(LONG, seed=1, ring=long.ring, plan=long.plan)
    bk.RingAttentionPlan.can_implement(long.plan, other.args[0])
    thread = long.in_flight()
    refused = 0
    while thread.is_alive():
        with pytest.raises(bk.CommunicatorError, match="in another run"):
            other.run()
        refused += 1
        time.sleep(0.01)
        if refused > 20:
            break
    thread.join()
    assert refused and long.is_right()
    assert all(np.isnan(rank.y).all() for rank in other.ranks)
    other.run()
    assert other.is_right()


def test_run_all_gives_back_what_it_took_when_one_rank_is_refused():
    long = Ring(LONG)
    one = threading.Thread(target=lambda: long.plan.run(HOST, long.ring[1], long.args[1]))
    one.start()  # rank 1 waits for rank 0
    time.sleep(0.1)
    with pytest.raises(bk.CommunicatorError, match="rank 1"):
        long.run()
    long.plan.run(HOST, long.ring[0], long.args[0])
    one.join()
    assert long.is_right()


def test_run_all_gives_back_what_it_took_when_arguments_are_refused():
    ring = Ring()
    good = ring.args[1]
    ring.args[1] = "no arguments"
    with pytest.raises(bk.InvalidProblemError, match="args"):
        ring.run()
    ring.args[1] = good
    ring.run()
    assert ring.is_right()


def test_a_refused_run_leaves_the_timeline_of_the_one_in_flight_alone():
    long, small = Ring(LONG), Ring(64)
    timelines = [bk.RingTimeline() for _ in range(2)]
    thread = threading.Thread(target=lambda: long.run(timeline=timelines))
    thread.start()
    time.sleep(0.05)
    with pytest.raises(bk.InvalidProblemError, match="in use by another run"):
        small.run(timeline=timelines)
    with pytest.raises(bk.CommunicatorError, match="in another run"):
        long.run()
    thread.join()
    assert all(len(timeline.steps) == 2 and timeline.total > 0 for timeline in timelines)
    small.run(timeline=timelines)
    assert small.is_right() and long.is_right()


def test_one_timeline_serves_one_rank():
    ring, timeline = Ring(), bk.RingTimeline()
    with pytest.raises(bk.InvalidProblemError, match="in use by another run"):
        ring.run(timeline=[timeline, timeline])
    ring.run(timeline=[timeline, bk.RingTimeline()])
    assert ring.is_right() and len(timeline.steps) == 2


def test_run_all_refuses_plans_that_disagree_and_shared_arguments():
    ring = Ring()
    d = ring.plan.descriptor
    same = bk.RingAttentionPlan.select(HOST, d)
    other = bk.RingAttentionPlan.select(
        HOST, bk.RingAttentionDescriptor(1, 2, 32, 32, 32, is_causal=True))
    ring.ring.run_all(HOST, [ring.plan, same], ring.args)
    assert ring.is_right()
    with pytest.raises(bk.InvalidProblemError, match="plans"):
        ring.ring.run_all(HOST, [ring.plan, other], ring.args)
    with pytest.raises(bk.InvalidProblemError, match="args"):
        ring.ring.run_all(HOST, ring.plan, [ring.args[0]] * 2)
    with pytest.raises(bk.InvalidProblemError, match="plans"):
        ring.ring.run_all(HOST, [ring.plan, None], ring.args)


def test_two_plans_share_arguments_in_two_threads():
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((1, 2, 512, 32), np.float32) for _ in range(3)]
    y = np.empty_like(x[0])
    args = bk.FlashSdpaArgs(q=x[0], k=x[1], v=x[2], y=y)
    plans = [bk.FlashSdpaPlan.select(HOST, bk.FlashSdpaDescriptor(1, 2, 512, 512, 32))
             for _ in range(2)]

    def drive(plan):
        for _ in range(50):
            plan.run(HOST, args)

    threads = [threading.Thread(target=drive, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.allclose(y, attention(*x)[0], atol=1e-5)


def test_ranks_of_a_ring_stay_what_they_are():
    ring = bk.LocalCommunicator.ring(2)
    assert isinstance(ring.ranks, tuple)
    with pytest.raises(TypeError):
        ring.ranks[0] = "x"
    for bad in ((None, 0, 1, -1), (), ("world",)):
        with pytest.raises(TypeError, match=r"LocalCommunicator.ring"):
            bk.LocalCommunicator(*bad)


@pytest.mark.parametrize("base", [bk.RingAttentionPlan, bk.FlashSdpaPlan])
def test_plans_come_from_select_alone(base):
    class Sub(base):
        def __init__(self):
            pass

    for make in (base, Sub, lambda: base.__new__(base), lambda: Sub.__new__(Sub)):
        with pytest.raises(TypeError, match="select"):
            make()


def test_plans_do_not_pickle():
    import copy
    import pickle

    d = bk.FlashSdpaDescriptor(1, 1, 2, 2, 4)
    plans = bk.FlashSdpaPlan.select(HOST, d), Ring().plan
    for plan in plans:
        for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="select again"):
                refuse(plan)


def test_a_daemon_thread_in_a_transport_does_not_abort_the_exit():
    script = textwrap.dedent("""
        import threading, time
        import numpy as np, baracuda_kernels as bk

        class Stuck:
            rank, world_size = 0, 2
            def group_start(self): pass
            def send(self, buffer, peer, stream): pass
            def recv(self, buffer, peer, stream): pass
            def group_end(self):
                reached.set()
                time.sleep(1.5)

        reached = threading.Event()
        stuck = Stuck()
        plan = bk.RingAttentionPlan.select(
            bk.Stream.host(), bk.RingAttentionDescriptor(1, 1, 4, 4, 4))
        x = [np.zeros((1, 1, 4, 4), np.float32) for _ in range(4)]
        scratch = [np.zeros(plan.kv_scratch_elements, np.float32) for _ in range(2)]
        args = bk.RingAttentionArgs(
            q=x[0], k=x[1], v=x[2], y=x[3], kv_scratch_a=scratch[0], kv_scratch_b=scratch[1],
            accumulator_scratch=np.zeros(plan.accumulator_scratch_bytes, np.uint8))

        def drive():
            while True:
                plan.run(bk.Stream.host(), stuck, args)

        # Long enough for the thread to wake while the interpreter is being taken down.
        class Slow:
            def __del__(self, sleep=time.sleep): sleep(3)
        import sys
        sys.slow = Slow()
        threading.Thread(target=drive, daemon=True).start()
        reached.wait()
    """)
    result = subprocess.run([sys.executable, "-c", script], check=False,
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result
