"""One rank of an NCCL ring whose call is wrong in a way that only that rank can see.

Over a fake NCCL. Run as communicator_cases.py is.
"""

import os
import signal
import threading
import time

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels.ops.ring_attention import _agreement

from .communicator_cases import (
    HOST,
    arguments,
    fake,  # noqa: F401 - a fixture of these tests too
    make_ring,
    plan_of,
    problem,
    run,
)
from .rank_threads import on_ranks
from .refusal_cases import ODD, RANKS, SOON, close, is_right

BUFFER = np.zeros(64, np.float32)


class ClosedStream:
    def __cuda_stream__(self):
        raise RuntimeError("it was closed")


class StreamWithoutHandle:
    cuda_stream = None


class ArrayThatFails:
    @property
    def __array_interface__(self):
        raise OSError("its file is gone")


class OutOfMemory(bk.RingAttentionArgs):
    """Arguments for which `comparing` raises."""


class Calls:
    """A call of every kind on the ranks of a ring, made wrong on one of them by a value."""

    def __init__(self, x, monkeypatch):
        self.x, self.plan = x, plan_of(RANKS)
        encode = _agreement.encode

        def comparing(descriptor, direction, args, rank):
            if not isinstance(args, OutOfMemory):
                return encode(descriptor, direction, args, rank)
            raise MemoryError("no memory for a message")

        monkeypatch.setattr(_agreement, "encode", comparing)

    def register(self, comm, buffer=BUFFER):
        comm.register(buffer)

    def run(self, comm, stream=HOST):
        self.plan.run(stream, comm, arguments(self.plan, self.x, RANKS, comm.rank)[0])

    def validate(self, comm, args=None):
        if args is not None:
            args, _ = arguments(self.plan, self.x, RANKS, comm.rank)
            args = OutOfMemory(q=args.q, k=args.k, v=args.v, y=args.y,
                               kv_scratch_a=args.kv_scratch_a, kv_scratch_b=args.kv_scratch_b,
                               accumulator_scratch=args.accumulator_scratch)
        self.plan.validate(comm, args)

    def split(self, comm, color=0, **given):
        child = comm.split(color, **given)
        if child is not None:
            child.close()


ELSEWHERE = bk.TensorRef(BUFFER.ctypes.data, (8,), element="F32", device=0)
WRONG = {
    "register nothing": ("register", {"buffer": None}, bk.InvalidProblemError, "buffer: got None"),
    "register a list": ("register", {"buffer": [1.0]}, bk.InvalidProblemError, "buffer: got list"),
    "register gaps": (
        "register", {"buffer": BUFFER[::2]}, bk.InvalidProblemError, "buffer: got a view"),
    "register elsewhere": (
        "register", {"buffer": ELSEWHERE}, bk.InvalidProblemError, "buffer: got memory on device"),
    "register what raises": (
        "register", {"buffer": ArrayThatFails()}, bk.InvalidProblemError, "its file is gone"),
    "a closed stream": (
        "run", {"stream": ClosedStream()}, bk.InvalidProblemError, "stream: got .*it was closed"),
    "a stream without a handle": (
        "run", {"stream": StreamWithoutHandle()}, bk.InvalidProblemError, "stream: got .*NoneType"),
    "a color that is none": (
        "split", {"color": "x"}, bk.InvalidProblemError, "color: got 'x', must be None or"),
    "a key that is none": ("split", {"key": 2**40}, bk.InvalidProblemError, "key: got"),
    "a split's timeout": ("split", {"timeout": -1}, bk.InvalidProblemError, "timeout: got -1"),
    "no memory": ("validate", {"args": "odd"}, MemoryError, "no memory for a message"),
}


@pytest.fixture(params=WRONG)
def wrong(request, monkeypatch):
    """The call as it should be, the odd rank's call, and that rank's error."""
    kind, given, error, says = WRONG[request.param]
    call = getattr(Calls(problem(), monkeypatch), kind)

    def odd(comm):
        with pytest.raises(error, match=says) as caught:
            call(comm, **given)
        return caught.value

    return call, odd


def test_before_the_others_have_begun_nothing_is_sent(fake, wrong):  # noqa: F811
    call, odd = wrong
    comms, x = make_ring(RANKS), problem()
    groups = fake.fake_nccl_count(b"ncclGroupStart")
    for _ in range(2):
        error = odd(comms[ODD])
        start = time.monotonic()
        for told in on_ranks(ODD, lambda rank: call(comms[rank])):
            assert isinstance(told, bk.BaracudaError), told
            assert f"rank {ODD}: " in str(told) and str(error) in str(told)
        assert time.monotonic() - start < SOON
    assert fake.fake_nccl_count(b"ncclGroupStart") == groups
    # The ring is healthy, and its ranks have counted the same calls.
    assert is_right(run(plan_of(RANKS), comms, x), x)
    assert on_ranks(RANKS, lambda rank: call(comms[rank])) == [None] * RANKS
    assert {comm.state for comm in comms} == {"healthy"}
    close(comms)


def test_where_the_others_have_begun_the_ring_fails_on_all(fake, wrong):  # noqa: F811
    call, odd = wrong
    comms = make_ring(RANKS)
    began = {name: fake.fake_nccl_count(name) for name in (b"ncclGroupStart", b"ncclCommSplit")}
    refused = []

    def work(rank):
        if rank != ODD:
            return call(comms[rank])
        while not any(fake.fake_nccl_count(name) >= before + ODD for name, before in began.items()):
            time.sleep(0.001)
        refused.append(time.monotonic())
        return odd(comms[ODD])

    results = on_ranks(RANKS, work)
    assert time.monotonic() - refused[0] < SOON
    for told in results[:ODD]:
        assert isinstance(told, bk.BaracudaError), told
        assert f"rank {ODD}: " in str(told) and str(results[ODD]) in str(told)
    end = time.monotonic() + SOON
    while {comm.state for comm in comms} != {"aborted"} and time.monotonic() < end:
        time.sleep(0.005)
    assert {comm.state for comm in comms} == {"aborted"}
    close(comms)


def test_a_split_where_another_rank_compares():
    """Every rank hears of it, as of a run where another rank compares."""
    comms, plan = make_ring(2), plan_of(2)
    start = time.monotonic()
    results = on_ranks(2, lambda rank: comms[rank].split(0) if rank else plan.validate(comms[rank]))
    assert time.monotonic() - start < SOON
    assert all(isinstance(r, bk.BaracudaError) for r in results), results
    assert any("calls validate()" in str(r) for r in results), results
    close(comms)


@pytest.mark.parametrize("make", ["init_rank", "from_handle", "init_all"])
def test_how_hops_wait_is_read_before_any_rank_is_met(fake, monkeypatch, make):  # noqa: F811
    owners = make_ring(2)
    handle = owners[0].handle
    monkeypatch.setenv("BARACUDA_PEER_WAIT", "bogus")
    inits = fake.fake_nccl_count(b"ncclCommInitRankConfig")
    start = time.monotonic()
    with pytest.raises(bk.InvalidProblemError, match="BARACUDA_PEER_WAIT: got 'bogus', must be"):
        if make == "init_rank":
            bk.Communicator.init_rank(2, bk.UniqueId.new(), 0, device="host", timeout=5)
        elif make == "from_handle":
            bk.Communicator.from_handle(handle, device="host", timeout=5)
        else:
            bk.Communicator.init_all(["host"])
    assert time.monotonic() - start < SOON
    assert fake.fake_nccl_count(b"comms_alive") == 2
    assert fake.fake_nccl_count(b"ncclCommInitRankConfig") == inits
    close(owners)


def test_a_sub_ring_waits_as_its_parent_was_told(monkeypatch):
    comms = make_ring(2)
    monkeypatch.setenv("BARACUDA_PEER_WAIT", "bogus")
    children = on_ranks(2, lambda rank: comms[rank].split(0))
    assert [child.world_size for child in children] == [2, 2]
    for group in (children, comms):
        close(group)


def test_a_signal_while_a_failed_ring_is_closed_keeps_its_cause(fake):  # noqa: F811
    """The hops cannot be by peer; the clean-up then hangs until Ctrl-C."""
    token = bk.UniqueId.new()
    other = threading.Thread(target=on_ranks, args=(1, lambda _: bk.Communicator.init_rank(
        2, token, 1, device="host", exchange="peer", timeout=20)))
    fake.fake_nccl_hang(b"ncclCommAbort", 0, 1)
    other.start()
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            bk.Communicator.init_rank(2, token, 0, device="host", exchange="peer", timeout=20)
    finally:
        timer.join()
        other.join(30)
    assert isinstance(caught.value.__cause__, bk.UnsupportedError)
    assert 'exchange: got "peer"' in str(caught.value.__cause__)
    fake.fake_nccl_release()
    time.sleep(0.1)
    fake.fake_nccl_reset()
