"""A launch that fails on one rank of a ring: no rank returns another answer or waits for good."""

import time

import numpy as np
import pytest
from helpers.failing_launches import failing_launches
from helpers.gradients import HOST, draw
from helpers.queues import Queues, transports
from helpers.rank_threads import on_ranks
from helpers.ring_gradients import HostGradients

import baracuda_kernels as bk

SOON = 5.0  # seconds; a wait for a rank that does not come takes 30
CASES = [(ranks, odd, step) for ranks in (2, 3) for odd in range(ranks) for step in range(ranks)]


def gradients(ranks, **options):
    """A backward ring, and its right gradients of every rank."""
    x = draw("f32", 3, heads=2, kv_heads=1, query_len=12 * ranks, head_dim=8)
    ring = HostGradients(x, ranks, **options)
    ring.run()
    expected = [[g.copy() for g in rank.gradients] for rank in ring.ranks]
    ring.poison()
    return ring, expected


def forward(ranks):
    """A plan, every rank's arguments and output, and the right outputs."""
    x = draw("f32", 3, heads=2, kv_heads=1, query_len=12 * ranks, head_dim=8)
    shards = [bk.shard(a, ranks) for a in x[:3]]
    desc = bk.RingAttentionDescriptor(1, 2, 12, 12, 8, num_kv_heads=1, element="F32")
    plan = bk.RingAttentionPlan.select(desc, HOST)
    args, outputs = [], []
    for q, k, v in zip(*shards, strict=True):
        scratch = np.empty((2, plan.kv_scratch_elements), np.float32)
        outputs.append(np.full_like(q, np.nan))
        args.append(bk.RingAttentionArgs(
            q=q.copy(), k=k.copy(), v=v.copy(), y=outputs[-1], kv_scratch_a=scratch[0],
            kv_scratch_b=scratch[1],
            accumulator_scratch=np.empty(plan.accumulator_scratch_bytes, np.uint8)))  # fmt: skip
    bk.LocalCommunicator.ring(ranks).run_all(HOST, plan, args)
    return plan, args, outputs, [y.copy() for y in outputs]


def failed_backward(ring, comms, odd, step):
    """What each rank raises, in which time, if rank `odd` cannot launch from `step` on."""
    begin = time.monotonic()
    with failing_launches("backward", odd, step):
        raised = on_ranks(
            len(comms), lambda rank: ring.plan.run(HOST, comms[rank], ring.args[rank])
        )
    return raised, time.monotonic() - begin


def assert_refused_or_right(ring, raised, expected, odd):
    """A rank whose sums were complete before the failure may have its answer."""
    assert isinstance(raised[odd], bk.CudaError) and raised[odd].call == "launch", raised
    assert raised[(odd + 1) % len(raised)] is not None, "it cannot have all sums"
    for rank, error in enumerate(raised):
        if error is None:
            assert all(map(np.array_equal, ring.ranks[rank].gradients, expected[rank]))


@pytest.mark.parametrize(("ranks", "odd", "step"), CASES)
def test_a_local_ring_ends_on_every_rank(ranks, odd, step):
    ring, expected = gradients(ranks)
    raised, seconds = failed_backward(ring, ring.ring.ranks, odd, step)
    assert_refused_or_right(ring, raised, expected, odd)
    for rank, error in enumerate(raised):
        if rank != odd and error is not None:
            assert isinstance(error, bk.CommunicatorError)
            # In an exchange, or in the middle of a step.
            texts = f"aborted by rank {odd}: launch", "the ring was aborted"
            assert any(text in str(error) for text in texts), error
    assert seconds < SOON
    again = on_ranks(ranks, lambda r: ring.plan.run(HOST, ring.ring[r], ring.args[r]))
    assert all(isinstance(error, bk.CommunicatorError) for error in again), again


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_one_thread_that_drives_all_ranks_gets_the_error_and_may_run_again(ranks):
    ring, expected = gradients(ranks)
    with failing_launches("backward", ranks - 1, ranks - 1), pytest.raises(bk.CudaError):
        ring.run()
    ring.run()
    for rank, right in zip(ring.ranks, expected, strict=True):
        assert all(map(np.array_equal, rank.gradients, right))


def test_a_rank_alone_may_run_again():
    ring, expected = gradients(1)
    raised, _ = failed_backward(ring, ring.ring.ranks, 0, 0)
    assert isinstance(raised[0], bk.CudaError)
    ring.plan.run(HOST, ring.ring[0], ring.args[0])
    assert all(map(np.array_equal, ring.ranks[0].gradients, expected[0]))


@pytest.mark.parametrize("over", ["local", "transport"])
@pytest.mark.parametrize("step", range(3))
def test_in_a_forward_the_others_get_their_answers_and_the_ring_goes_on(step, over):
    """What passes through the rank is K and V, which it has not computed."""
    plan, args, outputs, expected = forward(3)
    comms = bk.LocalCommunicator.ring(3).ranks if over == "local" else transports(3)
    with failing_launches("forward", 1, step):
        raised = on_ranks(3, lambda rank: plan.run(HOST, comms[rank], args[rank]))
    assert [type(error) for error in raised] == [type(None), bk.CudaError, type(None)]
    for rank in (0, 2):
        assert np.array_equal(outputs[rank], expected[rank])
    assert on_ranks(3, lambda rank: plan.run(HOST, comms[rank], args[rank])) == [None] * 3
    assert all(map(np.array_equal, outputs, expected))


class Impatient(Queues):
    timeout = 0.5


class Telling(Queues):
    """With the method by which a rank ends the waits of the others."""

    def __init__(self, *given):
        super().__init__(*given)
        self.aborts = 0

    def abort(self):
        self.aborts += 1
        for (sender, _), wire in self.wires.items():
            if sender == self.rank:
                wire.put(ConnectionError(f"rank {self.rank} is gone"))

    def group_end(self):
        pending, self.pending = self.pending, []
        for buffer, peer in pending:
            what = self.wires[peer, self.rank].get(timeout=30)
            if isinstance(what, Exception):
                raise what
            memoryview(buffer)[:] = what


@pytest.mark.parametrize("kind", [Impatient, Telling])
@pytest.mark.parametrize(("ranks", "odd", "step"), CASES)
def test_over_a_transport_the_others_wait_until_they_are_told(ranks, odd, step, kind):
    """By its own `abort`, or by the timeout of their receives."""
    ring, expected = gradients(ranks)
    ends = transports(ranks, kind)
    raised, seconds = failed_backward(ring, ends, odd, step)
    assert_refused_or_right(ring, raised, expected, odd)
    assert seconds < SOON
    if kind is Telling:
        told = [error for rank, error in enumerate(raised) if rank != odd and error is not None]
        assert all(isinstance(error, ConnectionError) for error in told)
        # Whoever is told ends its run early as well, and tells its other neighbour.
        assert [end.aborts for end in ends] == [int(error is not None) for error in raised]
    # A message of the ended run must not be taken for one of the next.
    for rank, error in enumerate(raised):
        if error is not None:
            with pytest.raises(bk.CommunicatorError, match="make a new transport"):
                ring.plan.run(HOST, ends[rank], ring.args[rank])


def test_an_abort_that_fails_hides_no_launch_that_failed():
    class Broken(Impatient):
        def abort(self):
            raise OSError("nothing to be done")

    ring, _ = gradients(2)
    raised, _ = failed_backward(ring, transports(2, Broken), 0, 1)
    assert isinstance(raised[0], bk.CudaError) and isinstance(raised[0].__cause__, OSError)
