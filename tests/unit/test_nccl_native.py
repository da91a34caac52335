"""NCCL communicators through the C ABI, over a fake NCCL on host memory: life, faults, deadlines.

Whatever happens, no test may leave a group open, a communicator alive, or a dead handle touched.
"""

from __future__ import annotations

import ctypes as ct
import threading
import time

import pytest
from helpers import ring_abi as abi
from helpers.ring_abi import last_failure
from helpers.ring_problem import Problem
from helpers.sum_ring import SumRing

HOST = -1


def count(what: str) -> int:
    return abi.fake_nccl().fake_nccl_count(what.encode())


def eventually(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return condition()


@pytest.fixture(autouse=True)
def fake():
    fake = abi.fake_nccl()
    fake.fake_nccl_reset()
    yield fake
    assert eventually(lambda: count("comms_alive") == 0), "a communicator leaks"
    assert count("open_groups") == 0, "a group is left open"
    assert count("unopened_groups") == 0
    assert count("use_after_free") == 0, "a dead handle was touched"
    fake.fake_nccl_reset()


def on_threads(count_: int, work) -> list:
    """Run work(rank) on a thread for each rank; returns the results in rank order."""
    results = [None] * count_

    def drive(rank: int) -> None:
        results[rank] = work(rank)

    threads = [threading.Thread(target=drive, args=(rank,)) for rank in range(count_)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return results


class Ring:
    """Communicators of all ranks, made on threads (init_rank) or on one (init_all)."""

    def __init__(self, world_size: int, timeout: float = 20.0, *, one_thread: bool = False) -> None:
        self.lib = abi.library()
        self.comms = (ct.c_void_p * world_size)()
        if one_thread:
            devices = (ct.c_int32 * world_size)(*[HOST] * world_size)
            status = self.lib.baracuda_nccl_init_all(world_size, devices, 4, timeout, self.comms)
            self.results = [last_failure() if status else None]
            return
        token = unique_id()

        def init(rank: int):
            comm = ct.c_void_p()
            status = self.lib.baracuda_nccl_init_rank(
                world_size, token, rank, HOST, 4, timeout, comm
            )
            self.comms[rank] = comm
            return last_failure() if status else None

        self.results = on_threads(world_size, init)

    def endpoints(self) -> list:
        return [self.lib.baracuda_nccl_endpoint(comm).contents for comm in self.comms]

    def states(self) -> list:
        return [self.lib.baracuda_nccl_state(comm) for comm in self.comms]

    def run(self, problem: Problem, timeout: float = 20.0) -> list:
        """Run every rank on its own thread, under a deadline: [Failure or None]."""

        def work(rank: int):
            comm = self.comms[rank]
            if self.lib.baracuda_nccl_arm(comm, timeout):
                return last_failure()
            call = problem.call(rank, self.endpoints()[rank])
            status = self.lib.baracuda_ring_run(ct.byref(call), 1)
            failure = last_failure() if status else None
            if self.lib.baracuda_nccl_disarm(comm):
                failure = last_failure()
            return failure

        return on_threads(problem.world_size, work)

    def run_from_one_thread(self, problem: Problem):
        calls = problem.calls(self.endpoints())
        status = self.lib.baracuda_ring_run(calls, problem.world_size)
        return last_failure() if status else None

    def close(self) -> list:
        return [self.lib.baracuda_nccl_destroy(comm) for comm in self.comms]


def unique_id() -> bytes:
    token = ct.create_string_buffer(128)
    assert abi.library().baracuda_nccl_unique_id(token) == abi.OK
    return token.raw


# ---- Health -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "launch_adds"), [(1, False), (2, True)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_sums_travel_behind_the_steps(world_size, parts, launch_adds):
    ring = Ring(world_size)
    problem = SumRing(world_size, parts=parts, launch_adds=launch_adds)
    assert not any(ring.run(problem))
    assert problem.is_right()
    problem.reset()
    assert ring.run_from_one_thread(problem) is None
    assert problem.is_right()
    assert ring.close() == [abi.OK] * world_size


@pytest.mark.parametrize("one_thread", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_ring_gives_the_answer(world_size, one_thread):
    ring = Ring(world_size, one_thread=one_thread)
    assert not any(ring.results)
    lib = ring.lib
    assert [lib.baracuda_nccl_rank(c) for c in ring.comms] == list(range(world_size))
    assert {lib.baracuda_nccl_world_size(c) for c in ring.comms} == {world_size}
    assert {lib.baracuda_nccl_is_owned(c) for c in ring.comms} == {1}
    assert {(end.max_ctas, end.in_clusters) for end in ring.endpoints()} == {(4, 0)}
    assert count("max_ctas") == 4 and count("cga_cluster_size") == 0
    for layout in (abi.CONTIGUOUS, abi.ZIGZAG, abi.STRIPED):
        problem = Problem(world_size, layout, True)
        if one_thread:
            assert ring.run_from_one_thread(problem) is None
        else:
            assert not any(ring.run(problem))
        assert problem.is_right()
    for comm in ring.comms:
        assert lib.baracuda_nccl_async_error(comm) == abi.OK
        assert lib.baracuda_nccl_synchronize(comm, None, 1.0) == abi.OK
    assert ring.states() == [0] * world_size
    assert ring.close() == [abi.OK] * world_size
    assert count("ncclCommAbort") == 0


def test_messages_of_a_run():
    """One group a step, all ranks of a thread in it; K and V apart in the first step alone."""
    ring = Ring(4, one_thread=True)
    before = {call: count(call) for call in ("ncclGroupStart", "ncclSend", "ncclRecv")}
    assert ring.run_from_one_thread(Problem(4, abi.CONTIGUOUS, True)) is None
    assert count("ncclGroupStart") - before["ncclGroupStart"] == 3
    assert count("ncclSend") - before["ncclSend"] == 4 * (2 + 1 + 1)
    assert count("ncclRecv") - before["ncclRecv"] == 4 * (2 + 1 + 1)
    ring.close()


def test_borrowed():
    ring = Ring(3)
    lib = ring.lib
    handles = [lib.baracuda_nccl_handle(c) for c in ring.comms]
    borrowed = [ct.c_void_p() for _ in range(3)]
    results = on_threads(
        3, lambda r: lib.baracuda_nccl_from_handle(handles[r], HOST, 20.0, borrowed[r])
    )
    assert results == [abi.OK] * 3
    assert [lib.baracuda_nccl_rank(c) for c in borrowed] == [0, 1, 2]
    assert [lib.baracuda_nccl_is_owned(c) for c in borrowed] == [0] * 3
    # Its owner may use NCCL's clusters.
    assert {lib.baracuda_nccl_endpoint(c).contents.in_clusters for c in borrowed} == {1}
    # An abort of a borrowed communicator only ends this library's use of it.
    assert lib.baracuda_nccl_abort(borrowed[1]) == abi.OK
    assert lib.baracuda_nccl_state(borrowed[1]) == 1
    problem = Problem(3, abi.CONTIGUOUS, False)
    call = problem.call(1, lib.baracuda_nccl_endpoint(borrowed[1]).contents)
    assert lib.baracuda_ring_run(ct.byref(call), 1) == abi.ABORTED
    assert "on request" in last_failure().message
    for comm in borrowed:
        assert lib.baracuda_nccl_destroy(comm) == abi.OK
    assert count("ncclCommAbort") == count("ncclCommDestroy") == 0
    assert not any(ring.run(problem)) and problem.is_right()
    ring.close()


def test_split():
    ring = Ring(5)
    lib = ring.lib
    children = [ct.c_void_p() for _ in range(5)]
    colors = [0, 1, 0, -1, 0]
    results = on_threads(
        5, lambda r: lib.baracuda_nccl_split(ring.comms[r], colors[r], -r, 20.0, children[r])
    )
    assert results == [abi.OK] * 5
    assert not children[3]
    members = [0, 2, 4]
    assert [lib.baracuda_nccl_rank(children[r]) for r in members] == [2, 1, 0]
    assert {lib.baracuda_nccl_world_size(children[r]) for r in members} == {3}
    assert lib.baracuda_nccl_world_size(children[1]) == 1
    half = Ring.__new__(Ring)
    half.lib, half.comms = lib, (ct.c_void_p * 3)(*[children[r].value for r in (4, 2, 0)])
    problem = Problem(3, abi.ZIGZAG, True)
    assert not any(half.run(problem)) and problem.is_right()
    for child in children:
        assert lib.baracuda_nccl_destroy(child) == abi.OK
    ring.close()


# ---- Deadlines ----------------------------------------------------------------------------------


def test_a_rank_that_never_comes():
    lib, comm = abi.library(), ct.c_void_p()
    start = time.monotonic()
    assert lib.baracuda_nccl_init_rank(2, unique_id(), 0, HOST, 0, 0.3, comm) == abi.TIMEOUT
    assert 0.25 < time.monotonic() - start < 5
    failure = last_failure()
    assert failure.call == "ncclCommInitRankConfig" and failure.rank == 0
    assert "0.3 s" in failure.message
    assert not comm
    assert count("ncclCommAbort") == 1 and count("ncclCommDestroy") == 0


def test_a_peer_that_hangs_in_the_warm_up(fake):
    fake.fake_nccl_hang(b"ncclGroupEnd", 1, 1)
    ring = Ring(3, timeout=0.4)
    assert [f.status for f in ring.results] == [abi.TIMEOUT] * 3
    assert {f.call for f in ring.results} == {"warm-up exchange"}
    assert [c for c in ring.comms if c] == []
    assert eventually(lambda: count("ncclCommAbort") == 3)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_peer_that_hangs_in_a_run(fake, step):
    ring = Ring(4)
    fake.fake_nccl_hang(b"ncclGroupEnd", 2, step + 1)
    start = time.monotonic()
    results = ring.run(Problem(4, abi.CONTIGUOUS, False), timeout=0.4)
    assert time.monotonic() - start < 5
    # In the last exchange rank 0 does not send to rank 2, and waits for no rank that does.
    stuck = [1, 2, 3] if step == 2 else [0, 1, 2, 3]
    assert [r for r in range(4) if results[r]] == stuck
    # The rank whose deadline comes first tells the others.
    assert {results[r].status for r in stuck} == {abi.TIMEOUT}
    assert {results[r].rank for r in stuck} <= set(stuck)
    assert eventually(lambda: ring.states() == [2] * 4)
    again = ring.run(Problem(4, abi.CONTIGUOUS, False), timeout=0.4)
    assert {again[r].status for r in stuck} == {abi.ABORTED}
    assert all(r in stuck or again[r].status == abi.TIMEOUT for r in range(4))
    assert all("0.4 s" in again[r].message for r in range(4))
    assert ring.close() == [abi.OK] * 4
    assert count("ncclCommAbort") == 4 and count("ncclCommDestroy") == 0


def test_a_missing_rank_in_a_run():
    ring = Ring(3)
    problem = Problem(3, abi.CONTIGUOUS, False)
    problem.world_size = 2  # no thread drives rank 2
    hops = [abi.plain_schedule(r, 3) for r in range(2)]

    def work(rank: int):
        ring.lib.baracuda_nccl_arm(ring.comms[rank], 0.3)
        call = problem.call(rank, ring.endpoints()[rank], hops=hops[rank])
        ring.lib.baracuda_ring_run(ct.byref(call), 1)
        return last_failure(), ring.lib.baracuda_nccl_disarm(ring.comms[rank])

    results, disarmed = zip(*on_threads(2, work), strict=True)
    assert [f.status for f in results] == [abi.TIMEOUT] * 2
    # The rank whose deadline comes first tells the other one.
    assert abi.TIMEOUT in disarmed and set(disarmed) <= {abi.OK, abi.TIMEOUT}
    ring.close()


def test_a_split_that_nobody_joins():
    ring = Ring(2)
    child = ct.c_void_p()
    status = ring.lib.baracuda_nccl_split(ring.comms[0], 0, 0, 0.2, child)
    assert status == abi.TIMEOUT and last_failure().call == "ncclCommSplit"
    assert not child
    assert eventually(lambda: ring.states() == [2, 2])
    ring.close()


def test_a_deadline_of_one_rank_is_told_to_the_others():
    """Over NCCL alone: they hear of it from the board, long before their own deadlines."""
    ring = Ring(3)
    problem = Problem(3, abi.CONTIGUOUS, False)
    seconds = [20.0, 0.3, 20.0]

    def work(rank: int):
        if rank == 2:  # does not come
            return None
        ring.lib.baracuda_nccl_arm(ring.comms[rank], seconds[rank])
        call = problem.call(rank, ring.endpoints()[rank])
        ring.lib.baracuda_ring_run(ct.byref(call), 1)
        failure = last_failure()
        ring.lib.baracuda_nccl_disarm(ring.comms[rank])
        return failure

    start = time.monotonic()
    told, late, _ = on_threads(3, work)
    assert time.monotonic() - start < 3
    assert (late.status, late.rank) == (abi.TIMEOUT, 1) and "0.3 s" in late.message
    assert (told.status, told.rank) == (abi.TIMEOUT, 1)
    assert told.message.startswith("rank 1 ended the ring: ring run: ") and "0.3 s" in told.message
    # So does the rank that does not wait: its next call returns it, once.
    assert eventually(lambda: ring.states() == [2, 2, 2])
    state = ct.c_int32()
    poll = ring.lib.baracuda_nccl_poll
    poll.argtypes = [ct.c_void_p, ct.POINTER(ct.c_int32)]
    assert poll(ring.comms[2], state) == abi.TIMEOUT and state.value == 2
    assert last_failure().message == told.message
    assert poll(ring.comms[2], state) == abi.OK
    assert poll(ring.comms[0], state) == abi.OK  # its run has returned it
    ring.close()


def test_a_deadline_that_is_met_aborts_nothing():
    ring = Ring(2)
    lib = ring.lib
    for _ in range(50):
        assert lib.baracuda_nccl_arm(ring.comms[0], 0.05) == abi.OK
        assert lib.baracuda_nccl_disarm(ring.comms[0]) == abi.OK
    time.sleep(0.1)
    assert ring.states() == [0, 0]
    # Without a limit there is nothing to disarm.
    assert lib.baracuda_nccl_arm(ring.comms[0], 0.0) == abi.OK
    assert lib.baracuda_nccl_disarm(ring.comms[0]) == abi.OK
    ring.close()


def test_an_idle_communicator_whose_deadline_passes():
    ring = Ring(2)
    lib = ring.lib
    assert lib.baracuda_nccl_arm(ring.comms[0], 0.05) == abi.OK
    assert eventually(lambda: ring.states() == [2, 2])
    assert lib.baracuda_nccl_disarm(ring.comms[0]) == abi.TIMEOUT
    assert lib.baracuda_nccl_disarm(ring.comms[0]) == abi.OK
    assert lib.baracuda_nccl_handle(ring.comms[0]) is None
    assert lib.baracuda_nccl_synchronize(ring.comms[0], None, 1.0) == abi.ABORTED
    assert lib.baracuda_nccl_arm(ring.comms[0], 1.0) == abi.ABORTED
    ring.close()


def test_many_deadlines():
    """The watchdog wakes for each deadline, in any order of arming."""
    rings = [Ring(1) for _ in range(8)]
    lib = abi.library()
    for i, ring in enumerate(rings):
        lib.baracuda_nccl_arm(ring.comms[0], 0.05 + 0.04 * ((i * 5) % 8))
    lib.baracuda_nccl_disarm(rings[3].comms[0])
    assert eventually(lambda: sum(r.states()[0] == 2 for r in rings) == 7, 3)
    time.sleep(0.1)
    assert rings[3].states() == [0]
    for ring in rings:
        ring.close()


# ---- Failures -----------------------------------------------------------------------------------

# Of four ranks, by step.
RUN_CALLS = {
    "ncclGroupStart": (1, 1, 1),
    "ncclSend": (8, 4, 4),
    "ncclRecv": (8, 4, 4),
    "ncclGroupEnd": (1, 1, 1),
}


@pytest.mark.parametrize(
    ("call", "step", "which"),
    [
        (call, step, which)
        for call, by_step in RUN_CALLS.items()
        for step, times in enumerate(by_step)
        for which in range(times)
    ],
)
def test_every_call_of_a_run_fails_in_turn(fake, call, step, which):
    """All four ranks on one thread, so that the nth call is always the same."""
    ring = Ring(4, one_thread=True)
    by_step = RUN_CALLS[call]
    fake.fake_nccl_inject(call.encode(), -1, sum(by_step[:step]) + which + 1, 2)
    failure = ring.run_from_one_thread(Problem(4, abi.CONTIGUOUS, False))
    assert failure.status == abi.NCCL_ERROR and failure.code == 2
    assert failure.call == call
    assert failure.step == step
    if by_step[step] > 1:
        assert failure.rank == which * 4 // by_step[step]
    assert "unhandled system error" in failure.message and "fake details" in failure.message
    assert count("open_groups") == 0
    assert eventually(lambda: ring.states()[failure.rank] == 2)
    refused = ring.run_from_one_thread(Problem(4, abi.CONTIGUOUS, False))
    assert refused.status == abi.ABORTED and call in refused.message
    ring.close()


@pytest.mark.parametrize("call", ["ncclSend", "ncclRecv", "ncclGroupEnd"])
@pytest.mark.parametrize("step", [0, 1])
def test_a_failing_rank_does_not_hang_the_others(fake, call, step):
    ring = Ring(3)
    nth = step + 1 if call == "ncclGroupEnd" else step + 2  # V's, then the only one
    fake.fake_nccl_inject(call.encode(), 1, nth, 6)
    results = ring.run(Problem(3, abi.CONTIGUOUS, False), timeout=0.5)
    assert results[1].status == abi.NCCL_ERROR
    assert (results[1].rank, results[1].step, results[1].call) == (1, step, call)
    # NCCL's errors are local, but the ranks of a machine tell each other.
    for failure in (results[0], results[2]):
        assert (failure.status, failure.code, failure.rank) == (abi.NCCL_ERROR, 6, 1)
        assert f"rank 1 ended the ring: {call}: " in failure.message
    ring.close()


@pytest.mark.parametrize(("parts", "launch_adds"), [(1, False), (2, True)])
@pytest.mark.parametrize("step", range(3))
def test_a_launch_that_fails_before_its_sum_is_sent_ends_the_ring(step, parts, launch_adds):
    ring = Ring(3)
    problem = SumRing(3, parts=parts, launch_adds=launch_adds)
    plain = problem.call

    def call(rank: int, endpoint):
        made = plain(rank, endpoint)
        if rank == 1:
            program = abi.Program.from_buffer_copy(made.program.contents)
            launch = abi.ProgramFn(ct.cast(program.launch, ct.c_void_p).value)

            def fail(given, at):
                return abi.CUDA_ERROR if at.contents.step == step else launch(given, at)

            program.launch = abi.ProgramFn(fail)
            made.program = ct.pointer(program)
        return made

    problem.call = call
    start = time.monotonic()
    results = ring.run(problem)
    assert time.monotonic() - start < 3
    assert (results[1].status, results[1].rank, results[1].step) == (abi.CUDA_ERROR, 1, step)
    assert results[2] is not None
    _, home = problem.expected()
    for rank in (0, 2):
        if results[rank] is None:  # its sums were complete
            assert (problem.home[rank] == home[rank]).all()
        else:
            assert results[rank].status == abi.ABORTED
            assert "rank 1 ended the ring: launch: " in results[rank].message
    assert eventually(lambda: ring.states() == [2, 2, 2])
    assert {failure.status for failure in ring.run(problem)} == {abi.ABORTED}
    assert ring.close() == [abi.OK] * 3
    assert count("ncclCommAbort") == 3


def test_a_launch_that_fails_where_no_sums_travel_leaves_the_ring_healthy():
    ring = Ring(3)
    problem = SumRing(3, beside_alone=True)
    plain = problem.call

    def call(rank: int, endpoint):
        made = plain(rank, endpoint)
        if rank == 1:
            program = abi.Program.from_buffer_copy(made.program.contents)
            program.launch = abi.ProgramFn(lambda _, __: abi.CUDA_ERROR)
            made.program = ct.pointer(program)
        return made

    problem.call = call
    results = ring.run(problem)
    assert results[0] is None and results[2] is None and results[1].status == abi.CUDA_ERROR
    assert all((problem.y[rank] == problem.expected()[0][rank]).all() for rank in (0, 2))
    problem.call = plain
    problem.reset()
    assert not any(ring.run(problem)) and problem.is_right()
    ring.close()


@pytest.mark.parametrize(
    ("call", "nth"),
    [
        ("ncclCommInitRankConfig", 1),
        ("init", 1),
        ("ncclGroupStart", 1),
        ("ncclSend", 1),
        ("ncclSend", 3),
        ("ncclRecv", 2),
        ("ncclGroupEnd", 1),
        ("ncclCommGetAsyncError", 1),
    ],
)
def test_every_call_of_an_init_fails_in_turn(fake, call, nth):
    fake.fake_nccl_inject(call.encode(), -1, nth, 3)
    comm = ct.c_void_p()
    lib = abi.library()
    assert lib.baracuda_nccl_init_rank(1, unique_id(), 0, HOST, 0, 5.0, comm) == abi.NCCL_ERROR
    failure = last_failure()
    assert failure.code == 3
    assert failure.call == ("ncclCommInitRankConfig" if call == "init" else call)
    assert not comm


@pytest.mark.parametrize(
    ("call", "nth"),
    [("ncclGetUniqueId", 1)]
    + [("ncclGroupStart", n) for n in (1, 2)]
    + [("ncclCommInitRankConfig", n) for n in (1, 2, 3)]
    + [("init", n) for n in (1, 2, 3)]
    + [("ncclSend", n) for n in range(1, 10)]
    + [("ncclRecv", n) for n in range(1, 10)]
    + [("ncclGroupEnd", n) for n in (1, 2)]
    + [("ncclCommGetAsyncError", n) for n in (1, 2, 3)],
)
def test_every_call_of_an_init_all_fails_in_turn(fake, call, nth):
    fake.fake_nccl_inject(call.encode(), -1, nth, 1)
    ring = Ring(3, timeout=5.0, one_thread=True)
    (failure,) = ring.results
    assert failure.status == abi.NCCL_ERROR and failure.code == 1
    assert failure.call == ("ncclGroupEnd" if call == "init" else call)
    assert [c for c in ring.comms if c] == []


def test_init_all_under_a_deadline(fake):
    fake.fake_nccl_hang(b"ncclGroupEnd", -1, 1)
    ring = Ring(2, timeout=0.2, one_thread=True)
    assert ring.results[0].status == abi.TIMEOUT
    assert eventually(lambda: count("ncclCommAbort") == 2)


def test_an_asynchronous_error(fake):
    ring = Ring(2)
    lib = ring.lib
    fake.fake_nccl_set_async_error(lib.baracuda_nccl_handle(ring.comms[0]), 6)
    assert lib.baracuda_nccl_async_error(ring.comms[0]) == abi.NCCL_ERROR
    assert last_failure().code == 6 and ring.states()[0] == 1
    # Later calls return it without a call of NCCL.
    fake.fake_nccl_set_async_error(lib.baracuda_nccl_handle(ring.comms[0]), 0)
    assert lib.baracuda_nccl_async_error(ring.comms[0]) == abi.NCCL_ERROR
    # The other rank is told.
    assert eventually(lambda: ring.states() == [1, 2])
    assert lib.baracuda_nccl_async_error(ring.comms[1]) == abi.NCCL_ERROR
    assert "rank 0 ended the ring: ncclCommGetAsyncError: " in last_failure().message
    ring.close()
    assert count("ncclCommAbort") == 2


def test_an_asynchronous_error_ends_synchronize(fake):
    ring = Ring(1)
    fake.fake_nccl_set_async_error(ring.lib.baracuda_nccl_handle(ring.comms[0]), 2)
    assert ring.lib.baracuda_nccl_synchronize(ring.comms[0], None, 5.0) == abi.NCCL_ERROR
    assert last_failure().call == "ncclCommGetAsyncError"
    assert eventually(lambda: ring.states() == [2])
    ring.close()
    assert count("ncclCommAbort") == 1


def test_an_abort_from_another_thread_unblocks_a_run(fake):
    ring = Ring(2)
    fake.fake_nccl_hang(b"ncclGroupEnd", 0, 1)
    timer = threading.Timer(0.2, lambda: [ring.lib.baracuda_nccl_abort(c) for c in ring.comms])
    timer.start()
    results = ring.run(Problem(2, abi.CONTIGUOUS, False), timeout=20)
    assert [f.status for f in results] == [abi.ABORTED] * 2
    assert all("on request" in f.message for f in results)
    ring.close()
    assert count("ncclCommAbort") == 2


def test_aborts_happen_once():
    ring = Ring(2)
    on_threads(8, lambda r: ring.lib.baracuda_nccl_abort(ring.comms[r % 2]))
    assert eventually(lambda: count("ncclCommAbort") == 2)
    ring.close()
    assert count("ncclCommAbort") == 2


def test_a_failing_destroy_is_told(fake):
    ring = Ring(1)
    fake.fake_nccl_inject(b"ncclCommDestroy", 0, 1, 1)
    assert ring.close() == [abi.NCCL_ERROR]
    fake.fake_nccl_reset()


def test_a_destroy_that_hangs(fake):
    ring = Ring(1, timeout=0.2)
    fake.fake_nccl_hang(b"ncclCommDestroy", 0, 1)
    start = time.monotonic()
    assert ring.close() == [abi.TIMEOUT]
    assert time.monotonic() - start < 3 and last_failure().call == "ncclCommDestroy"
    fake.fake_nccl_release()
    time.sleep(0.1)
    fake.fake_nccl_reset()


# ---- Loading ------------------------------------------------------------------------------------


def test_arguments():
    lib, comm = abi.library(), ct.c_void_p()
    token = unique_id()
    for world_size, rank, device in ((0, 0, HOST), (2, 2, HOST), (2, -1, HOST), (1, 0, -2)):
        status = lib.baracuda_nccl_init_rank(world_size, token, rank, device, 0, 1.0, comm)
        assert status == abi.INVALID_ARGUMENT
    assert lib.baracuda_nccl_init_rank(1, None, 0, HOST, 0, 1.0, comm) == abi.INVALID_ARGUMENT
    assert lib.baracuda_nccl_from_handle(None, HOST, 1.0, comm) == abi.INVALID_ARGUMENT
    assert lib.baracuda_nccl_destroy(None) == abi.OK
    if not lib.baracuda_cuda_built():
        assert lib.baracuda_nccl_init_rank(1, token, 0, 0, 0, 1.0, comm) == abi.UNAVAILABLE


def test_a_second_library_is_refused():
    lib = abi.library()
    path = lib.baracuda_nccl_path()
    assert lib.baracuda_nccl_load(path) == abi.OK
    assert lib.baracuda_nccl_load(b"/elsewhere/libnccl.so.2") == abi.INVALID_ARGUMENT
    assert lib.baracuda_nccl_path() == path


def test_without_a_library():
    abi.in_new_process(
        """
        comm, version = ct.c_void_p(), ct.c_int32()
        assert lib.baracuda_nccl_path() is None
        assert lib.baracuda_nccl_version(ct.byref(version)) == abi.UNAVAILABLE
        assert lib.baracuda_nccl_init_rank(1, bytes(128), 0, -1, 0, 1.0, comm) == abi.UNAVAILABLE
        assert "baracuda_nccl_load" in abi.last_failure().message
        assert lib.baracuda_nccl_load(b"/nowhere/libnccl.so") == abi.UNAVAILABLE
        assert "/nowhere/libnccl.so" in abi.last_failure().message
        assert lib.baracuda_nccl_load(b"libm.so.6") == abi.UNAVAILABLE
        assert "ncclGetVersion" in abi.last_failure().message
        assert lib.baracuda_nccl_path() is None
        """
    )


def test_an_old_library():
    abi.in_new_process(
        """
        path = abi.build_helper("fake_nccl.cpp", "-DFAKE_NCCL_OLD")
        assert lib.baracuda_nccl_load(path.encode()) == abi.OK
        comm = ct.c_void_p()
        assert lib.baracuda_nccl_init_rank(1, bytes(128), 0, -1, 0, 1.0, comm) == abi.UNAVAILABLE
        message = abi.last_failure().message
        assert "2.14" in message and "2.28.9" in message, message
        """
    )


def test_the_real_library_answers_without_a_gpu():
    pathfinder = pytest.importorskip("cuda.pathfinder")
    try:
        path = pathfinder.load_nvidia_dynamic_lib("nccl").abs_path
    except pathfinder.DynamicLibNotFoundError:
        pytest.skip("needs NCCL")
    abi.in_new_process(
        """
        assert lib.baracuda_nccl_load(sys.argv[1].encode()) == abi.OK, abi.last_failure()
        version, token = ct.c_int32(), ct.create_string_buffer(128)
        assert lib.baracuda_nccl_version(ct.byref(version)) == abi.OK
        assert version.value >= 21400
        assert lib.baracuda_nccl_unique_id(token) == abi.OK
        assert token.raw != bytes(128)
        """,
        path,
    )


@pytest.mark.parametrize(
    ("call", "nth"),
    [
        ("ncclCommCount", 1),
        ("ncclCommUserRank", 1),
        ("ncclGroupStart", 1),
        *[("ncclSend", n) for n in (1, 2, 3)],
        *[("ncclRecv", n) for n in (1, 2, 3)],
        ("ncclGroupEnd", 1),
        ("ncclCommGetAsyncError", 1),
    ],
)
def test_every_call_of_a_borrowing_fails_in_turn(fake, call, nth):
    """The borrowed communicator is unchanged."""
    ring = Ring(1)
    handle = ring.lib.baracuda_nccl_handle(ring.comms[0])
    fake.fake_nccl_inject(call.encode(), -1, nth, 3)
    borrowed = ct.c_void_p()
    status = ring.lib.baracuda_nccl_from_handle(handle, HOST, 5.0, borrowed)
    failure = last_failure()
    assert status == failure.status == abi.NCCL_ERROR
    assert (failure.code, failure.call) == (3, call)
    assert not borrowed
    assert ring.states() == [0] and count("ncclCommAbort") == count("ncclCommDestroy") == 0
    assert ring.lib.baracuda_nccl_from_handle(handle, HOST, 5.0, borrowed) == abi.OK
    assert ring.lib.baracuda_nccl_destroy(borrowed) == abi.OK
    ring.close()


@pytest.mark.parametrize(
    ("call", "nth"),
    [
        ("ncclCommSplit", 1),
        ("ncclCommCount", 1),
        ("ncclCommUserRank", 1),
        ("ncclGroupStart", 1),
        *[("ncclSend", n) for n in (1, 2, 3)],
        *[("ncclRecv", n) for n in (1, 2, 3)],
        ("ncclGroupEnd", 1),
        ("ncclCommGetAsyncError", 1),
    ],
)
def test_every_call_of_a_split_fails_in_turn(fake, call, nth):
    ring = Ring(1)
    fake.fake_nccl_inject(call.encode(), -1, nth, 3)
    child = ct.c_void_p()
    assert ring.lib.baracuda_nccl_split(ring.comms[0], 0, 0, 5.0, child) == abi.NCCL_ERROR
    failure = last_failure()
    assert (failure.code, failure.call) == (3, call)
    assert not child
    # A split that NCCL refused leaves nobody knowing what the parent is in; a child that was made
    # and then failed is no fault of the parent's.
    assert (ring.states() == [0]) == (call != "ncclCommSplit")
    ring.close()
