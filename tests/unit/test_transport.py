"""A ring over a caller's own transport: the protocol's calls, their order, and its exceptions."""

import gc
import queue
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.queues import Queues, transports
from helpers.rank_threads import on_ranks

import baracuda_kernels as bk
from baracuda_kernels.testing import attention

B, H, S, D, P = 1, 2, 12, 16, 4


def run(plan, ends, x, *, staged=False):
    y = [None] * P

    def work(rank):
        q, k, v = (bk.shard(a, P)[rank].copy() for a in x)
        y[rank] = np.full_like(q, np.nan)
        scratch = np.full((2, plan.kv_scratch_elements), np.nan)
        state = np.zeros(plan.accumulator_scratch_bytes, np.uint8)
        if staged:
            scratch[0] = np.concatenate([k.ravel(), v.ravel()])
        given = {} if staged else {"k": k, "v": v}
        plan.run(bk.Stream.host(), ends[rank], bk.RingAttentionArgs(
            q=q, **given, y=y[rank], kv_scratch_a=scratch[0], kv_scratch_b=scratch[1],
            accumulator_scratch=state))

    errors = on_ranks(P, work)
    return y, errors


@pytest.fixture(scope="module")
def plan():
    descriptor = bk.RingAttentionDescriptor(B, H, S // P, S // P, D, element="F64")
    return bk.RingAttentionPlan.select(bk.Stream.host(), descriptor)


@pytest.fixture
def x():
    rng = np.random.default_rng()
    return [rng.standard_normal((B, H, S, D)) for _ in range(3)]


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("wrap", [lambda t: t, bk.TransportCommunicator])
def test_the_ring_over_queues(plan, x, wrap, staged):
    """K and V are two messages in the first exchange and one in the others, wherever they lie."""
    ends = transports(P)
    y, errors = run(plan, [wrap(t) for t in ends], x, staged=staged)
    assert errors == [None] * P
    exact = attention(*x)[0]
    assert np.linalg.norm(bk.unshard(y) - exact) <= 1e-12 * np.linalg.norm(exact)
    nbytes = B * H * (S // P) * D * 8
    for rank, end in enumerate(ends):
        after, before = (rank + 1) % P, (rank - 1) % P
        first = ["start", ("send", after, nbytes), ("send", after, nbytes),
                 ("recv", before, nbytes), ("recv", before, nbytes), "end"]
        later = ["start", ("send", after, 2 * nbytes), ("recv", before, 2 * nbytes), "end"]
        assert end.calls == first + later * (P - 2)


class Broken(Queues):
    def recv(self, buffer, peer, stream):
        if self.rank == 1:
            raise OSError("cable cut")
        super().recv(buffer, peer, stream)

    def group_end(self):
        self.calls.append("end")
        if self.rank == 1:
            raise RuntimeError("a later failure, which must not hide the first")
        for buffer, peer in self.pending:
            memoryview(buffer)[:] = self.wires[peer, self.rank].get(timeout=0.5)


def test_its_exception_reaches_the_caller_and_the_group_is_closed(plan, x):
    ends = transports(P, Broken)
    _, errors = run(plan, ends, x)
    assert isinstance(errors[1], OSError) and str(errors[1]) == "cable cut"
    assert ends[1].calls.count("start") == ends[1].calls.count("end")
    # The neighbour that waited in vain reports its own.
    assert any(isinstance(e, queue.Empty) for e in errors)


@pytest.mark.parametrize("method", ["group_start", "send", "recv", "group_end"])
def test_an_exception_ends_validate_and_the_rank(plan, method):
    """What the rank has sent must not be taken for the messages of a later run."""

    class Cut(Queues):
        aborted = 0

        def abort(self):
            self.aborted += 1

    def cut(self, *args):
        raise OSError("cable cut")

    setattr(Cut, method, cut)
    ends = transports(P, Cut)
    for error in on_ranks(P, lambda rank: plan.validate(ends[rank])):
        assert isinstance(error, OSError) and str(error) == "cable cut"
    assert [end.aborted for end in ends] == [1] * P
    delattr(Cut, method)
    for error in on_ranks(P, lambda rank: plan.validate(ends[rank])):
        assert isinstance(error, bk.CommunicatorError) and "ended a call early" in str(error)


def test_a_transport_is_not_kept_alive(plan, x):
    ends = transports(P)
    run(plan, ends, x)
    ghosts = [weakref.ref(end) for end in ends]
    del ends
    gc.collect()
    assert [ghost() for ghost in ghosts] == [None] * P


@pytest.mark.parametrize("bad", [(3, 3), (-1, 2), (0, 0)])
def test_ranks_that_cannot_be(bad):
    with pytest.raises(bk.InvalidProblemError, match="rank"):
        bk.TransportCommunicator(Queues(*bad, {}))


def test_an_object_without_the_protocol(plan):
    assert not isinstance(object(), bk.Transport)
    assert isinstance(Queues(0, 1, {}), bk.Transport)


@pytest.mark.parametrize("method", ["group_start", "send", "recv", "group_end"])
def test_methods_that_nothing_awaits_are_refused(plan, method):
    """They would transfer nothing, and the run would read what lay in the buffers before."""

    class Late(Queues):
        timeout = 0.2

    async def late(self, *args):
        getattr(super(Late, self), method)(*args)

    setattr(Late, method, late)
    end = transports(P, Late)[0]
    with pytest.raises(bk.InvalidProblemError, match=rf"transport.{method}: got an awaitable"):
        plan.validate(bk.TransportCommunicator(end))


def test_a_transport_stays_the_same_rank(plan):
    end = transports(P)[1]
    assert bk.TransportCommunicator.of(end, -1).rank == 1
    end.rank = 2
    with pytest.raises(bk.InvalidProblemError, match="got rank 2 of 4, must stay rank 1 of 4"):
        bk.TransportCommunicator.of(end, -1)


def test_threads_that_use_a_transport_for_the_first_time_get_one_communicator():
    class Slow(Queues):
        @property
        def rank(self):
            time.sleep(0.02)  # the other threads go on meanwhile
            return 0

        @rank.setter
        def rank(self, value):
            pass

    (end,) = transports(1, Slow)
    with ThreadPoolExecutor(4) as pool:
        made = [*pool.map(lambda _: bk.TransportCommunicator.of(end, -1), range(4))]
    assert len({id(one) for one in made}) == 1


def test_two_ranks_of_one_number_are_found_by_validate():
    """Over wires that do not look at `peer`, as pipes between two processes."""

    class Pipe(Queues):
        def send(self, buffer, peer, stream):
            self.wires["to", self.end].put(bytes(memoryview(buffer)))

        def group_end(self):
            pending, self.pending = self.pending, []
            for buffer, _ in pending:
                memoryview(buffer)[:] = self.wires["from", self.end].get(timeout=self.timeout)

    there, back = queue.Queue(), queue.Queue()
    ends = [Pipe(0, 2, {("to", 0): there, ("from", 0): back, ("to", 1): back, ("from", 1): there})
            for _ in range(2)]  # fmt: skip
    descriptor = bk.RingAttentionDescriptor(B, H, S, S, D, element="F64")
    plan = bk.RingAttentionPlan.select(descriptor, bk.Stream.host())

    def work(number):
        ends[number].end = number
        plan.validate(bk.TransportCommunicator(ends[number]))

    errors = on_ranks(2, work)
    for error in errors:
        assert isinstance(error, bk.InvalidProblemError)
        assert "rank 1: got the message of rank 0, must be its own" in str(error)
