"""Two threads that share any of plan, communicator, timeline and arguments: a second run at the same
moment is a typed error, and whatever runs is right."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_kernels as bk
from baracuda_kernels._core import _info
from baracuda_kernels.testing import attention

HOST = bk.Stream.host()
SHARED = ("plan", "ring", "timeline", "args")
RUNS = 6
ROWS, WIDTH = 192, 32


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So that two runs meet on a machine of many cores, too."""
    before = _info.host_info()["threads"]
    _info.set_host_threads(1)
    yield
    _info.set_host_threads(before)


class Ring:
    """One thread's objects; those named are taken from another's."""

    def __init__(self, world_size, is_causal, seed=0, shared=(), other=None):
        rng = np.random.default_rng(seed)
        self.world_size, self.is_causal = world_size, is_causal
        self.x = [rng.standard_normal((1, 2, ROWS, WIDTH), np.float32) for _ in range(3)]
        rows = ROWS // world_size
        self.plan = other.plan if "plan" in shared else bk.RingAttentionPlan.select(
            bk.RingAttentionDescriptor(1, 2, rows, rows, WIDTH, is_causal=is_causal), HOST)
        self.ring = other.ring if "ring" in shared else bk.LocalCommunicator.ring(world_size)
        self.timeline = other.timeline if "timeline" in shared else [
            bk.RingTimeline() for _ in range(world_size)]
        if "args" in shared:
            self.x, self.y, self.args = other.x, other.y, other.args
        else:
            self.y, self.args = [], []
            for rank in range(world_size):
                q, k, v = (bk.shard(a, world_size)[rank].copy() for a in self.x)
                self.y.append(np.full_like(q, np.nan))
                scratch = [np.empty(self.plan.kv_scratch_elements, np.float32) for _ in range(2)]
                state = np.empty(self.plan.accumulator_scratch_bytes, np.uint8)
                self.args.append(bk.RingAttentionArgs(
                    q=q, k=k, v=v, y=self.y[-1], kv_scratch_a=scratch[0], kv_scratch_b=scratch[1],
                    accumulator_scratch=state))

    def run(self, timed):
        """None, or the typed error."""
        timeline = self.timeline if timed else None
        try:
            if self.world_size > 1:
                self.ring.run_all(HOST, self.plan, self.args, timeline=timeline)
            else:
                self.plan.run(HOST, self.ring[0], self.args[0],
                              timeline=timeline and timeline[0])
        except bk.BaracudaError as error:
            return error
        return None

    def is_right(self):
        exact = attention(*self.x, is_causal=self.is_causal)[0]
        return np.allclose(bk.unshard(self.y), exact, atol=1e-5)


def at_once(*calls):
    """Results of calls that begin at the same moment, RUNS times each."""
    barrier, found = threading.Barrier(len(calls)), [[] for _ in calls]

    def drive(call, results):
        for _ in range(RUNS):
            barrier.wait(30)
            results.append(call())

    threads = [threading.Thread(target=drive, args=pair) for pair in zip(calls, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a run hangs"
    return found


@settings(max_examples=30, deadline=None)
@given(
    world_size=st.integers(1, 3),
    is_causal=st.booleans(),
    timed=st.booleans(),
    # Two runs of several ranks would write one scratch: arguments are shared with their ring alone.
    shared=st.sets(st.sampled_from(SHARED)).filter(lambda s: "args" not in s or "ring" in s),
)
def test_two_threads(world_size, is_causal, timed, shared):
    one = Ring(world_size, is_causal)
    two = Ring(world_size, is_causal, 1, shared, one)
    results = at_once(lambda: one.run(timed), lambda: two.run(timed))
    for pair in zip(*results, strict=True):
        # One of the two has run, whatever the other met.
        assert None in pair, pair
    for error in filter(None, itertools.chain(*results)):
        busy = type(error) is bk.CommunicatorError and "in another run" in str(error)
        taken = type(error) is bk.InvalidProblemError and "in use by another run" in str(error)
        assert (busy and "ring" in shared) or (taken and timed and "timeline" in shared), error
    for ring, answers in zip((one, two), results, strict=True):
        if None in answers or "args" in shared:
            assert ring.is_right(), (shared, answers)
        else:
            assert all(np.isnan(y).all() for y in ring.y), "a refused run wrote"
    # Nothing was left behind.
    for ring in (one, two):
        assert ring.run(timed) is None and ring.is_right()
        assert not timed or all(len(t.steps) == world_size and t.total > 0 for t in ring.timeline)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["run", "validate", "can_implement", "repr"]), min_size=2, max_size=4))
def test_a_rank_that_many_threads_use(calls):
    ring = Ring(1, False)

    def call(what):
        try:
            if what == "run":
                return ring.run(False)
            if what == "validate":
                return ring.plan.validate(ring.ring[0], ring.args[0])
            if what == "can_implement":
                return ring.plan.can_implement(ring.args[0], 1)
            return repr(ring.ring[0]) and None
        except bk.BaracudaError as error:
            return error

    for results in at_once(*(lambda what=what: call(what) for what in calls)):
        for error in filter(None, results):
            assert type(error) is bk.CommunicatorError and "in another run" in str(error), error
    assert ring.run(False) is None and ring.is_right()
