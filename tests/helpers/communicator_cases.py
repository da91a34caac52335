"""Communicator and UniqueId over a fake NCCL on host memory: life cycle, faults and errors.

NCCL is bound once per process, so tests/unit/test_communicator.py runs these in their own process.
"""

import ctypes as ct
import gc
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels._core import _nccl_options
from baracuda_kernels.testing import attention

from .gradients import draw
from .one_cause import assert_one_cause, cannot_be_by_peer
from .rank_threads import on_ranks
from .ring_gradients import HostGradients

B, H, S, D = 1, 2, 12, 16
HOST = bk.Stream.host()


@pytest.fixture(autouse=True)
def fake():
    library = ct.CDLL(os.environ["BARACUDA_NCCL_LIBRARY"])
    library.fake_nccl_count.restype = ct.c_int64
    library.fake_nccl_reset()
    yield library
    gc.collect()
    assert library.fake_nccl_count(b"comms_alive") == 0
    assert library.fake_nccl_count(b"open_groups") == 0
    library.fake_nccl_reset()


def make_ring(world_size, timeout=20.0):
    token = bk.UniqueId.new()
    return on_ranks(world_size, lambda rank: bk.Communicator.init_rank(
        world_size, token, rank, device="host", timeout=timeout))


def arguments(plan, x, world_size, rank):
    q, k, v = (bk.shard(a, world_size)[rank].copy() for a in x)
    y = np.full_like(q, np.nan)
    scratch = [np.full(plan.kv_scratch_elements, np.nan, q.dtype) for _ in range(2)]
    state = np.zeros(plan.accumulator_scratch_bytes, np.uint8)
    args = bk.RingAttentionArgs(q=q, k=k, v=v, y=y, kv_scratch_a=scratch[0],
                                kv_scratch_b=scratch[1], accumulator_scratch=state)
    return args, y


def run(plan, comms, x):
    def work(rank):
        args, y = arguments(plan, x, len(comms), rank)
        plan.run(bk.Stream.host(), comms[rank], args)
        return y

    return on_ranks(len(comms), work)


def plan_of(world_size):
    descriptor = bk.RingAttentionDescriptor(B, H, S // world_size, S // world_size, D,
                                            is_causal=True, element="F64")
    return bk.RingAttentionPlan.select(bk.Stream.host(), descriptor)


def problem():
    rng = np.random.default_rng()
    return [rng.standard_normal((B, H, S, D)) for _ in range(3)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_ring_gives_the_answer(world_size):
    comms = make_ring(world_size)
    x = problem()
    for _ in range(2):
        y = bk.unshard(run(plan_of(world_size), comms, x))
        exact = attention(*x, is_causal=True)[0]
        assert np.linalg.norm(y - exact) <= 1e-12 * np.linalg.norm(exact)
    for rank, comm in enumerate(comms):
        assert (comm.rank, comm.world_size, comm.device) == (rank, world_size, -1)
        assert comm.state == "healthy" and comm.owned and comm.async_error() is None
        assert comm.handle > 0 and "healthy" in repr(comm)
    on_ranks(world_size, lambda rank: comms[rank].close())


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_gradients_have_the_bits_of_a_local_ring(world_size):
    x = draw("f32", 0, heads=H, kv_heads=1, query_len=S, head_dim=D)
    ring = HostGradients(x, world_size, layout="zigzag", is_causal=True)
    expected = [g.copy() for g in ring.run()]
    comms = make_ring(world_size)
    for _ in range(2):
        ring.poison()
        raised = on_ranks(world_size, lambda rank: ring.plan.run(HOST, comms[rank], ring.args[rank]))
        assert raised == [None] * world_size
        assert all(map(np.array_equal, expected, ring.gathered()))
    on_ranks(world_size, lambda rank: comms[rank].close())


def test_life_cycle():
    comm = make_ring(1)[0]
    with comm as same:
        assert same is comm
    assert comm.state == "closed"
    comm.close()
    args, _ = arguments(plan_of(1), problem(), 1, 0)
    for use in (lambda: plan_of(1).run(bk.Stream.host(), comm, args), comm.abort,
                lambda: comm.handle, lambda: comm.async_error(), lambda: comm.split(0),
                lambda: comm.synchronize(bk.Stream.host())):
        with pytest.raises(bk.CommunicatorError, match="closed"):
            use()


def test_a_dropped_communicator_is_destroyed(fake):
    comm = make_ring(1)[0]
    assert fake.fake_nccl_count(b"comms_alive") == 1
    del comm
    gc.collect()
    assert fake.fake_nccl_count(b"comms_alive") == 0


def test_abort_is_final():
    comms = make_ring(2, timeout=1.0)
    comms[0].abort()
    assert comms[0].state == "aborted"
    results = run(plan_of(2), comms, problem())
    assert all(isinstance(r, bk.CommunicatorError) for r in results), results
    assert "aborted" in str(results[0])
    on_ranks(2, lambda rank: comms[rank].close())


def test_a_borrowed_communicator_is_left_alone(fake):
    owner = make_ring(1)[0]
    borrowed = bk.Communicator.from_handle(owner.handle, device="host", owner=owner)
    assert not borrowed.owned and borrowed.world_size == 1
    x = problem()
    y = run(plan_of(1), [borrowed], x)[0]
    assert np.allclose(y, attention(*x, is_causal=True)[0])
    borrowed.close()
    assert fake.fake_nccl_count(b"comms_alive") == 1 and owner.state == "healthy"
    owner.close()


def test_split():
    comms = make_ring(4)
    children = on_ranks(4, lambda rank: comms[rank].split(rank % 2, -rank))
    assert [(c.rank, c.world_size) for c in children] == [(1, 2), (1, 2), (0, 2), (0, 2)]
    x = problem()
    exact = attention(*x, is_causal=True)[0]
    for color in range(2):
        pair = sorted((c for r, c in enumerate(children) if r % 2 == color), key=lambda c: c.rank)
        assert np.allclose(bk.unshard(run(plan_of(2), pair, x)), exact)
    nobody = on_ranks(4, lambda rank: comms[rank].split(None if rank else 0))
    assert [n is None for n in nobody] == [False, True, True, True]
    for group in (children, nobody, comms):
        on_ranks(4, lambda rank, group=group: group[rank] and group[rank].close())


def test_a_missing_rank_is_a_timeout():
    token = bk.UniqueId.new()
    with pytest.raises(bk.NcclTimeoutError, match="0.2"):
        bk.Communicator.init_rank(2, token, 0, device="host", timeout=0.2)


def interrupt_soon():
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return time.monotonic()


def test_hops_are_tried_unless_the_caller_or_the_environment_says_no(monkeypatch):
    """The reason of a hop on the host names the exchange that was asked for."""
    monkeypatch.delenv("BARACUDA_EXCHANGE", raising=False)
    for environment, said in (("", "not on a CUDA device"), ("nccl", 'exchange="nccl"')):
        monkeypatch.setenv("BARACUDA_EXCHANGE", environment)
        assert _nccl_options.exchange_info()["default"] == (environment or "auto")
        comms = make_ring(2)
        for comm in comms:
            assert [hop.kind for hop in comm.exchange] == ["nccl"] * 2
            assert all(said in hop.reason for hop in comm.exchange), comm.exchange
        on_ranks(2, lambda rank, comms=comms: comms[rank].close())


def test_ctrl_c_ends_the_wait_for_a_missing_rank():
    token, start = bk.UniqueId.new(), interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        bk.Communicator.init_rank(2, token, 0, device="host", timeout=30)
    assert time.monotonic() - start < 2


def test_ctrl_c_ends_the_wait_for_a_peer_in_the_warm_up(fake):
    fake.fake_nccl_hang(b"ncclGroupEnd", -1, 1)
    start = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        bk.Communicator.init_rank(1, bk.UniqueId.new(), 0, device="host", timeout=30)
    assert time.monotonic() - start < 2


def test_ctrl_c_ends_the_agreement_on_hops(fake):
    """The other rank exists, and sends nothing after the warm-up."""
    token = bk.UniqueId.new()
    fake.fake_nccl_hang(b"ncclGroupEnd", 1, 2)

    def join(_rank):
        return bk.Communicator.init_rank(2, token, 1, device="host", timeout=3)

    other = threading.Thread(target=on_ranks, args=(1, join))
    other.start()
    start = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        bk.Communicator.init_rank(2, token, 0, device="host", timeout=30)
    assert time.monotonic() - start < 2
    other.join()


def test_ctrl_c_ends_a_register():
    comms = make_ring(2, timeout=30)
    start = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        comms[0].register(np.zeros(64, np.uint8))
    assert time.monotonic() - start < 2
    assert comms[0].state in ("failed", "aborted")
    comms[1].abort()
    for comm in comms:
        comm.close()


def test_ctrl_c_ends_a_split():
    comms = make_ring(2, timeout=30)
    start = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        comms[0].split(0)
    assert time.monotonic() - start < 2
    assert comms[0].state in ("failed", "aborted")
    with pytest.raises(bk.CommunicatorError):
        comms[0].split(0)
    comms[1].abort()
    for comm in comms:
        comm.close()


def test_a_signal_without_an_exception_changes_nothing():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(bk.NcclTimeoutError):
            bk.Communicator.init_rank(2, bk.UniqueId.new(), 0, device="host", timeout=0.5)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen


def test_close_waits_for_whoever_is_inside(fake):
    """Threads query and abort while another one closes: they get a result, or the error of a closed
    one."""
    for _ in range(20):
        comm, stop, wrong = make_ring(1)[0], threading.Event(), []

        def use(comm=comm, stop=stop, wrong=wrong):
            while not stop.is_set():
                for call in (comm.async_error, comm.abort, lambda: comm.synchronize(HOST),
                             lambda: comm.state, lambda: comm.handle):
                    try:
                        call()
                    except bk.CommunicatorError:
                        pass
                    except BaseException as error:  # noqa: BLE001 - handed to the test
                        wrong.append(error)

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.005)
        while comm.state != "closed":
            try:
                comm.close()
            except bk.CommunicatorError as error:
                assert "synchronize" in str(error)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
    assert fake.fake_nccl_count(b"use_after_free") == 0


def test_close_waits_for_a_slow_question(fake):
    comm = make_ring(1)[0]
    fake.fake_nccl_hang(b"ncclCommGetAsyncError", -1, 1)
    threading.Timer(0.3, fake.fake_nccl_release).start()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(comm.async_error()))
    thread.start()
    time.sleep(0.1)
    comm.close()
    thread.join()
    assert isinstance(answers[0], bk.NcclError) and fake.fake_nccl_count(b"use_after_free") == 0


def test_rank_0_tells_the_others_that_it_made_no_id(fake):
    box, barrier = [], threading.Barrier(3)
    fake.fake_nccl_inject(b"ncclGetUniqueId", -1, 1, 2)
    start = time.monotonic()
    results = on_ranks(3, lambda rank: bk.Communicator.from_mpi(
        FakeMpi(rank, 3, box, barrier), device="host"))
    assert time.monotonic() - start < 5
    assert isinstance(results[0], bk.NcclError)
    assert all("rank 0" in str(r) and isinstance(r, bk.CommunicatorError) for r in results[1:])


def test_one_run_at_a_time(fake):
    comms = make_ring(2)
    x, plan = problem(), plan_of(2)
    args = [arguments(plan, x, 2, rank)[0] for rank in range(2)]
    started = fake.fake_nccl_count(b"ncclGroupStart")
    thread = threading.Thread(target=plan.run, args=(bk.Stream.host(), comms[0], args[0]))
    thread.start()  # waits for rank 1 inside its first group
    while fake.fake_nccl_count(b"ncclGroupStart") == started:
        time.sleep(0.001)
    other, _ = arguments(plan, x, 2, 0)
    with pytest.raises(bk.CommunicatorError, match="in another run"):
        plan.run(bk.Stream.host(), comms[0], other)
    with pytest.raises(bk.CommunicatorError, match="in flight"):
        comms[0].close()
    plan.run(bk.Stream.host(), comms[1], args[1])
    thread.join(20)
    assert not thread.is_alive() and comms[0].state == "healthy"
    on_ranks(2, lambda rank: comms[rank].close())


@pytest.mark.parametrize("call", ["ncclSend", "ncclRecv", "ncclGroupEnd"])
def test_a_failed_call_is_typed_and_final(fake, call):
    comms = make_ring(2, timeout=0.5)
    fake.fake_nccl_inject(call.encode(), -1, 1, 2)
    results = run(plan_of(2), comms, problem())
    failed = [r for r in results if isinstance(r, bk.NcclError)]
    assert failed, results
    assert any(error.call == call for error in failed)  # another rank is told of it
    assert all(error.status == 2 and error.rank in (0, 1) for error in failed), failed
    again = run(plan_of(2), comms, problem())
    assert all(isinstance(r, bk.CommunicatorError) for r in again)
    on_ranks(2, lambda rank: comms[rank].close())


def test_unique_ids():
    one, other = bk.UniqueId.new(), bk.UniqueId.new()
    assert one != other and len(one.bytes) == 128
    assert bk.UniqueId.from_bytes(one.bytes) == one == pickle.loads(pickle.dumps(one))
    assert len({one, bk.UniqueId.from_bytes(one.bytes)}) == 1
    with pytest.raises(bk.InvalidProblemError, match="128"):
        bk.UniqueId.from_bytes(b"short")


@pytest.mark.parametrize(
    "arguments",
    [{"world_size": 0}, {"world_size": "2"}, {"rank": 2}, {"rank": -1}, {"device": "gpu"},
     {"device": -3}, {"max_ctas": 0}, {"max_ctas": 65}, {"max_ctas": True}, {"timeout": 0},
     {"timeout": True}, {"rank": True}, {"world_size": 2**40}, {"device": 2**40}, {"timeout": "soon"},
     {"unique_id": b"x"}],
    ids=str,
)
def test_bad_arguments(arguments):
    good = {"world_size": 2, "unique_id": bk.UniqueId.new(), "rank": 0, "device": "host"}
    with pytest.raises(bk.InvalidProblemError, match=next(iter(arguments))):
        bk.Communicator.init_rank(**{**good, **arguments})


@pytest.mark.parametrize(("asked", "taken"), [(None, 8), (1, 1), (3, 4), (8, 8), (33, 64)])
def test_max_ctas_are_a_power_of_two(fake, asked, taken):
    """NCCL maps messages between ranks to a number of channels that the config cannot change."""
    given = {} if asked is None else {"max_ctas": asked}
    with bk.Communicator.init_rank(1, bk.UniqueId.new(), 0, device="host", **given):
        assert fake.fake_nccl_count(b"max_ctas") == taken


def with_exchange(wishes):
    """The communicator of every rank, or the error of its constructor."""
    token = bk.UniqueId.new()
    return on_ranks(len(wishes), lambda rank: bk.Communicator.init_rank(
        len(wishes), token, rank, device="host", exchange=wishes[rank], timeout=20.0))


def test_the_exchange_says_why_a_hop_is_not_by_peer():
    comms = with_exchange(["auto", "auto", "nccl"])
    for comm in comms:
        assert [hop[:3] for hop in comm.exchange] == [
            (0, 1, "nccl"), (1, 2, "nccl"), (2, 0, "nccl")]
        assert "CUDA device" in comm.exchange[0].reason
        assert "rank 2" in comm.exchange[1].reason and "rank 2" in comm.exchange[2].reason
    on_ranks(3, lambda rank: comms[rank].close())


def test_a_peer_that_cannot_be_is_an_error_on_every_rank():
    for wishes, why in (
        (["auto", "peer"], "one of its ranks is not on a CUDA device"),
        (["peer", *["nccl"] * 3], 'one of its ranks asked for exchange="nccl": rank 1'),
    ):
        errors = with_exchange(wishes)
        assert all(isinstance(error, bk.UnsupportedError) for error in errors)
        cause = cannot_be_by_peer(why, asked=wishes.index("peer"))
        assert_one_cause([str(error) for error in errors], cause)


def test_the_environment_gives_the_default(monkeypatch):
    monkeypatch.setenv("BARACUDA_EXCHANGE", "peer")
    assert all(isinstance(e, bk.UnsupportedError) for e in with_exchange([None, None]))
    comms = with_exchange(["nccl", "nccl"])
    assert "asked for" in comms[0].exchange[0].reason
    on_ranks(2, lambda rank: comms[rank].close())
    monkeypatch.setenv("BARACUDA_EXCHANGE", "smoke signals")
    with pytest.raises(bk.InvalidProblemError, match="exchange: got 'smoke signals'"):
        bk.Communicator.init_rank(1, bk.UniqueId.new(), 0, device="host")


def test_a_timeline_has_its_communicators_hops():
    comms = make_ring(2)
    plan, timeline = plan_of(2), bk.RingTimeline()
    assert timeline.hops == ()
    x = problem()
    assert on_ranks(2, lambda rank: plan.run(
        HOST, comms[rank], arguments(plan, x, 2, rank)[0],
        timeline=timeline if rank == 0 else None)) == [None, None]
    assert timeline.hops == comms[0].exchange != ()
    on_ranks(2, lambda rank: comms[rank].close())


def test_what_is_registered_lies_on_the_communicators_device():
    comms = make_ring(2)
    x = np.zeros(8, np.float32)
    assert on_ranks(2, lambda rank: comms[rank].register(x)) == [None, None]
    errors = on_ranks(2, lambda rank: comms[rank].register(np.zeros((8, 8), np.float32)[:, ::2]))
    assert all(isinstance(e, bk.InvalidProblemError) and "dense" in str(e) for e in errors)
    on_ranks(2, lambda rank: comms[rank].close())


def test_it_is_not_made_by_hand():
    with pytest.raises(TypeError, match="init_rank"):
        bk.Communicator()
    for bad in (0, -1, "handle", None, True, 2.0, 2**64):
        with pytest.raises(bk.InvalidProblemError, match="handle"):
            bk.Communicator.from_handle(bad, device="host")
    for bad in ([], [0, 0]):
        with pytest.raises(bk.InvalidProblemError, match="devices"):
            bk.Communicator.init_all(bad)


class FakeMpi:
    """mpi4py's three methods over threads."""

    def __init__(self, rank, size, box, barrier):
        self.rank, self.size, self.box, self.barrier = rank, size, box, barrier
        self.told = 0

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.size

    def bcast(self, value, root):
        if self.rank == root:
            self.box.append(value)
        self.barrier.wait(10)
        self.told += 1
        return self.box[self.told - 1]


def test_from_mpi():
    box, barrier = [], threading.Barrier(3)
    comms = on_ranks(3, lambda rank: bk.Communicator.from_mpi(
        FakeMpi(rank, 3, box, barrier), device="host"))
    assert [c.rank for c in comms] == [0, 1, 2]
    on_ranks(3, lambda rank: comms[rank].close())
