"""The ring loop and local worlds through the C ABI: order, races, faults."""

from __future__ import annotations

import ctypes as ct
import itertools
import threading
import time

import numpy as np
import pytest
from helpers import ring_abi as abi
from helpers.loop_cost import time_calls
from helpers.ring_abi import LocalWorld, last_failure
from helpers.ring_problem import Problem

LAYOUTS = (abi.CONTIGUOUS, abi.ZIGZAG, abi.STRIPED)


def run_all(problem: Problem, world: LocalWorld, streams=None) -> int:
    calls = problem.calls(world.endpoints, streams)
    return world.lib.baracuda_ring_run(calls, problem.world_size)


def run_threads(problem: Problem, world: LocalWorld, ranks=None, delay=None) -> dict:
    """Every rank by its own thread: {rank: Failure or None}."""
    results = {}

    def drive(rank: int) -> None:
        if delay:
            time.sleep(delay(rank))
        call = problem.call(rank, world.endpoints[rank])
        status = world.lib.baracuda_ring_run(ct.byref(call), 1)
        results[rank] = last_failure() if status else None

    ranks = range(problem.world_size) if ranks is None else ranks
    threads = [threading.Thread(target=drive, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return results


# ---- Answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("world_size", range(1, 9))
def test_threads_and_one_thread_agree(world_size, causal, layout):
    for query_len, key_len, staged in [(5, 5, True), (4, 7, False), (7, 3, True), (1, 1, False)]:
        problem = Problem(
            world_size, layout, causal, query_len=query_len, key_len=key_len, staged=staged
        )
        world = LocalWorld(world_size)
        assert run_all(problem, world) == abi.OK, last_failure()
        assert problem.is_right(), (query_len, key_len, staged)
        first = problem.y.copy(), problem.lse.copy()
        problem.reset()
        assert set(run_threads(problem, world).values()) == {None}
        assert np.array_equal(problem.y, first[0]) and np.array_equal(problem.lse, first[1])
        world.close()


@pytest.mark.parametrize(
    ("query_len", "key_len", "shape"),
    [
        (0, 5, (1, 2, 1, 4)),
        (5, 0, (1, 2, 1, 4)),
        (0, 0, (1, 2, 1, 4)),
        (5, 5, (0, 2, 1, 4)),
        (3, 2, (2, 4, 2, 8)),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_shards(query_len, key_len, shape, layout):
    problem = Problem(3, layout, True, query_len=query_len, key_len=key_len, shape=shape)
    world = LocalWorld(3)
    assert run_all(problem, world) == abi.OK, last_failure()
    assert problem.is_right()
    problem.reset()
    assert set(run_threads(problem, world).values()) == {None}
    assert problem.is_right()
    world.close()


def test_a_rank_without_rows_passes_k_and_v_on():
    problem = Problem(4, abi.CONTIGUOUS, False)
    world = LocalWorld(4)
    calls = problem.calls(world.endpoints)
    problem.parts[2].step.query_len = 0
    assert world.lib.baracuda_ring_run(calls, 4) == abi.OK
    y, _ = problem.expected()
    for rank in (0, 1, 3):
        np.testing.assert_allclose(problem.y[rank], y[rank], rtol=1e-11)
    assert (problem.y[2] == 77).all()
    world.close()


def test_layout_maps():
    for world_size, length in itertools.product(range(1, 9), range(8)):
        for layout in LAYOUTS:
            problem = Problem(world_size, layout, False, query_len=1, key_len=1)
            places = []
            for rank in range(world_size):
                found = abi.library().baracuda_layout_map(layout, rank, world_size, length)
                assert found.stride == (world_size if layout == abi.STRIPED else 1)
                got = found.positions(length)
                assert np.array_equal(got, problem.positions(rank, length))
                assert (np.diff(got) > 0).all()
                places.extend(got)
            assert sorted(places) == list(range(world_size * length))


def test_other_schedules_are_other_hops():
    """The reversed ring, and one whose steps differ: by 1, then by 2, then back by 1."""
    for offsets in ([0, -1, -2, -3], [0, 1, 3, 2]):
        p = len(offsets)
        problem = Problem(p, abi.ZIGZAG, True)
        world = LocalWorld(p)
        calls = []
        for rank in range(p):
            hops = (abi.Hop * p)()
            for step in range(p):
                jump = offsets[step + 1] - offsets[step] if step + 1 < p else 0
                hops[step] = abi.Hop(
                    (rank - offsets[step]) % p, (rank + jump) % p, (rank - jump) % p
                )
            calls.append(problem.call(rank, world.endpoints[rank], hops=hops))
        assert world.lib.baracuda_ring_run((abi.Call * p)(*calls), p) == abi.OK, last_failure()
        assert problem.is_right()
        world.close()


def test_calls_can_be_run_again():
    problem = Problem(3, abi.STRIPED, True, staged=False)
    world = LocalWorld(3)
    calls = problem.calls(world.endpoints)
    for _ in range(3):
        problem.y[:] = 77
        assert world.lib.baracuda_ring_run(calls, 3) == abi.OK
        assert problem.is_right()
        assert [end.steps_enqueued for end in world.endpoints] == [3, 3, 3]
    world.close()


def test_a_run_allocates_nothing():
    """Counted by a preloaded malloc, on the second run, one thread driving all ranks."""
    body = """
    count = ct.CDLL(None).count_malloc
    count.restype = ct.c_int64
    from helpers.ring_problem import Problem
    world, problem = abi.LocalWorld(4), Problem(4, abi.ZIGZAG, True)
    calls = problem.calls(world.endpoints)
    run = lib.baracuda_ring_run
    assert run(calls, 4) == abi.OK
    problem.reset()
    before = count()
    assert before > 0
    unrelated = count()
    status = lib.baracuda_ring_run(None, 0)
    cost_of_ctypes = count() - unrelated
    before = count()
    status = run(calls, 4)
    allocated = count() - before
    assert status == abi.OK and problem.is_right()
    assert allocated <= cost_of_ctypes, (allocated, cost_of_ctypes)
    """
    abi.in_new_process(body, preload=abi.build_helper("count_malloc.cpp", "-ldl"))


# ---- Simulated streams: order and races ---------------------------------------------------------


class Simulation:
    """A staged ring on simulated streams: K and V arrive on the callers' streams just before the
    run, and every buffer is poisoned on them just after it."""

    def __init__(
        self, world_size: int, layout: int, causal: bool, dropped: range = range(0),
        overlap: bool = True, one_stream: bool = False,
    ) -> None:  # fmt: skip
        abi.reset_simulator(dropped.start, len(dropped))
        self.sim = abi.simulator()
        self.ops = self.sim.sim_stream_ops().contents
        self.problem = Problem(world_size, layout, causal, query_len=3, key_len=3)
        self.world = LocalWorld(world_size, self.sim.sim_stream_ops())
        self.streams = []
        for _ in range(1 if one_stream else world_size):
            stream = ct.c_void_p()
            self.ops.stream_create(stream, 0)
            self.streams.append(stream.value)
        if one_stream:
            self.streams *= world_size
        self.endpoints = self.world.endpoints
        if not overlap:  # every exchange in its place between the steps, on the caller's stream
            self.endpoints = abi.without_overlap(self.endpoints, self.streams)
        for end in self.endpoints:
            end.max_ctas = 8

    def enqueue(self, threads: bool = False) -> int:
        problem = self.problem
        staged = np.stack([problem.k, problem.v], axis=1)
        poison = np.full_like(problem.receive, np.nan)
        self.held = staged, poison
        problem.receive[:] = np.nan
        for rank, stream in enumerate(self.streams):
            into, what = problem.receive[rank, 0], staged[rank]
            self.ops.copy(into.ctypes.data, what.ctypes.data, what.nbytes, stream)
        calls = problem.calls(self.endpoints, self.streams, self.sim.sim_program())
        status = self.world.lib.baracuda_ring_run(calls, problem.world_size)
        for rank, stream in enumerate(self.streams):
            into, what = problem.receive[rank], poison[rank]
            self.ops.copy(into.ctypes.data, what.ctypes.data, what.nbytes, stream)
        return status

    def finish(self, seed: int) -> bool:
        return self.sim.sim_run(seed) == 0 and self.problem.is_right()


@pytest.mark.parametrize("one_stream", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_any_order_of_the_streams_gives_the_answer(world_size, causal, layout, one_stream):
    for seed in range(12):
        simulation = Simulation(world_size, layout, causal, one_stream=one_stream)
        assert simulation.enqueue() == abi.OK
        assert simulation.finish(seed), seed
        simulation.world.close()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_overlap_changes_no_bit(world_size, layout):
    outputs = []
    for overlap in (True, False):
        for seed in range(6):
            simulation = Simulation(world_size, layout, True, overlap=overlap)
            assert simulation.enqueue() == abi.OK
            streams = {line.split()[-1] for line in simulation.sim.sim_log().decode().splitlines()}
            assert any(name.startswith("ring") for name in streams) == overlap
            assert simulation.finish(seed), (overlap, seed)
            outputs.append(simulation.problem.y.tobytes() + simulation.problem.lse.tobytes())
            simulation.world.close()
    assert len(set(outputs)) == 1


@pytest.mark.parametrize(("layout", "causal"), [(abi.CONTIGUOUS, False), (abi.ZIGZAG, True)])
def test_every_wait_is_needed(layout, causal):
    ranks, exchanges = 4, 3
    simulation = Simulation(ranks, layout, causal)
    assert simulation.enqueue() == abi.OK
    waits = simulation.sim.sim_waits()
    # Per rank and exchange: the ring stream for the kernel, the receiver for its sender, the sender
    # for its receiver, the caller's stream for the exchange.
    assert waits == ranks * exchanges * 4
    # With one thread rank 0 receives first, so that the wait of its sender in the next exchange
    # comes before that sender's own copy, and covers this exchange too.
    covered = {ranks + 1, 3 * ranks + ranks + 1}
    for dropped in set(range(waits)) - covered:
        assert is_needed(range(dropped, dropped + 1), ranks, layout, causal), dropped


def is_needed(dropped: range, *problem, **options) -> bool:
    """Whether some order that leaving these waits out permits gives a wrong answer."""
    for seed in range(400):
        simulation = Simulation(*problem, dropped, **options)
        assert simulation.enqueue() == abi.OK
        if not simulation.finish(seed):
            return True
    return False


@pytest.mark.parametrize(("layout", "causal"), [(abi.CONTIGUOUS, False), (abi.ZIGZAG, True)])
def test_ranks_on_one_stream_need_their_waits_together(layout, causal):
    """There the waits of a step cover one another, and nothing parts its kernels."""
    ranks, exchanges = 4, 3
    simulation = Simulation(ranks, layout, causal, one_stream=True)
    assert simulation.enqueue() == abi.OK
    assert simulation.sim.sim_waits() == ranks * exchanges * 4
    lines = simulation.sim.sim_log().decode().splitlines()
    on_user = [what.split("[")[0] for what, at in map(str.split, lines) if at.startswith("user")]
    step = ["launch"] * ranks
    waits = ["wait"] * ranks
    assert on_user == [
        *["copy"] * ranks,  # ours: K and V arrive
        *("record", *step, "record"),  # the start, and step 0
        *(*waits, *step, "record"),
        *(*waits, *step, *waits, *step),  # nobody fills the last two buffers again
        *["copy"] * ranks,  # ours: poison
    ]
    # The waits of exchange(s) for kernel(s - 1), and those of kernel(s) for exchange(s - 1).
    group = ranks * 3
    first = [0, group, 2 * group + ranks]
    for start in (*first, 2 * group, 3 * group + ranks, 3 * group + 2 * ranks):
        dropped = range(start, start + ranks)
        assert is_needed(dropped, ranks, layout, causal, one_stream=True), dropped


def test_order_of_one_rank():
    """What one rank of two enqueues, exchange first."""
    simulation = Simulation(2, abi.CONTIGUOUS, False)
    assert simulation.enqueue() == abi.OK
    ring, user = "ring0", "user2"
    lines = [
        line
        for line in simulation.sim.sim_log().decode().splitlines()
        if line.endswith((ring, user))
    ]
    assert lines == [
        f"copy {user}",  # ours: K and V arrive
        f"record {user}",  # the start
        f"wait {ring}",
        f"record {ring}",  # what is sent may be read
        f"wait {ring}",  # for the sender
        f"copy {ring}",
        f"copy {ring}",
        f"record {ring}",  # what was received is there
        f"wait {ring}",  # for the receiver of ours
        f"record {ring}",  # exchange_done
        f"launch[F,8] {user}",
        f"wait {user}",
        f"launch[L,0] {user}",
        f"copy {user}",  # ours: poison
    ]


def test_one_rank_launches_one_kernel_and_touches_no_event():
    simulation = Simulation(1, abi.CONTIGUOUS, True)
    assert simulation.enqueue() == abi.OK
    assert simulation.sim.sim_log().decode().split("\n")[1:-2] == ["launch[FL,0] user1"]


def test_flags_follow_the_live_steps():
    """Causal contiguous: rank r sees the chunks of ranks 0 .. r, its own first."""
    simulation = Simulation(3, abi.CONTIGUOUS, True)
    assert simulation.enqueue() == abi.OK
    launches = [
        line.split() for line in simulation.sim.sim_log().decode().splitlines() if "launch" in line
    ]
    by_rank = {
        rank: [what for what, stream in launches if stream == f"user{3 + rank}"]
        for rank in range(3)
    }
    assert by_rank == {
        0: ["launch[FL,8]"],
        1: ["launch[F,8]", "launch[L,8]"],
        2: ["launch[F,8]", "launch[,8]", "launch[L,0]"],
    }


def paused_launches(blocks: int, per_multiprocessor: int, *, in_clusters: bool = False) -> list:
    """For each launch of rank 0 of two, with such a grid on 132 multiprocessors of which 8 are the
    exchange's: whether the stream was held up ahead of it."""
    simulation = Simulation(2, abi.CONTIGUOUS, False)
    simulation.endpoints[0].in_clusters = int(in_clusters)
    simulation.sim.sim_set_grid(blocks, per_multiprocessor)
    assert simulation.enqueue() == abi.OK
    lines = simulation.sim.sim_log().decode().splitlines()
    assert simulation.finish(0)
    mine = [line.split("[")[0].split()[0] for line in lines if line.endswith("user2")]
    return [mine[i - 1] == "pause" for i, what in enumerate(mine) if what == "launch"]


def test_launches_that_would_fill_the_device_let_the_exchange_begin_first():
    left, every, per_sm = 124, 132, 2
    assert paused_launches(left, per_sm) == [False, False]  # whole multiprocessors stay free
    assert paused_launches(left + 1, per_sm) == [True, False]  # the last step has no exchange
    assert paused_launches(per_sm * left, per_sm) == [True, False]
    assert paused_launches(per_sm * left + 1, per_sm) == [False, False]  # would take another wave
    assert paused_launches(per_sm * every, per_sm) == [False, False]
    assert paused_launches(per_sm * every + 1, per_sm) == [True, False]  # takes it anyway
    assert paused_launches(0, 0) == [False, False]


def test_resident_blocks_give_way_to_clusters_alone():
    assert paused_launches(124, 1, in_clusters=True) == [True, False]
    assert paused_launches(123, 1, in_clusters=True) == [False, False]
    assert paused_launches(124, 1) == [False, False]


def test_only_exchanges_have_a_margin():
    """Whatever the caller's step says of SMs to leave free: the loop alone knows its exchanges."""
    simulation = Simulation(2, abi.CONTIGUOUS, False)
    problem = simulation.problem
    program = simulation.sim.sim_program()
    calls = problem.calls(simulation.endpoints, simulation.streams, program)
    for part in problem.parts.values():
        part.step.sm_margin = 5
    assert simulation.world.lib.baracuda_ring_run(calls, 2) == abi.OK
    lines = simulation.sim.sim_log().decode().splitlines()
    launches = [line.split()[0] for line in lines if line.startswith("launch")]
    assert launches == ["launch[F,8]", "launch[F,8]", "launch[L,0]", "launch[L,0]"]
    assert simulation.sim.sim_run(0) == 0  # before the buffers go


@pytest.mark.parametrize("call", ["record", "wait", "copy", "launch"])
def test_failures_of_the_streams_are_located(call):
    """Every call in turn fails: typed, the group closed, the first failure reported."""
    for nth in itertools.count(1):
        simulation = Simulation(3, abi.CONTIGUOUS, False)
        simulation.sim.sim_fail(call.encode(), nth + (3 if call == "copy" else 0), 8)
        status = simulation.enqueue()
        if status == abi.OK:
            break
        failure = last_failure()
        assert status == failure.status == abi.CUDA_ERROR
        assert 0 <= failure.rank < 3 and 0 <= failure.step < 3, failure
        if call == "launch":
            # A failed kernel does not strand the neighbours: every exchange still took place.
            assert simulation.sim.sim_log().decode().count("copy ring") == 3 * (2 + 1)
            assert simulation.sim.sim_run(0) == 0
        # No group is left open on this thread.
        transport = simulation.world.endpoints[0].transport
        assert transport.group_end(transport.context) == abi.INVALID_ARGUMENT
        assert "no group is open" in last_failure().message
    assert nth > 3


def test_endpoint_open_cleans_up_after_itself():
    lib, sim = abi.library(), abi.simulator()
    for call, count in (("stream_create", 1), ("event_create", 5)):
        for nth in range(1, count + 1):
            abi.reset_simulator()
            sim.sim_fail(call.encode(), nth, 8)
            end = abi.Endpoint(
                struct_size=ct.sizeof(abi.Endpoint), device=1, ops=sim.sim_stream_ops()
            )
            assert lib.baracuda_ring_endpoint_open(ct.byref(end)) == 8
            assert sim.sim_alive() == 0
            assert sim.sim_current_device() == -1
            assert not end.ring_stream and not end.compute_done


def test_ranks_on_several_devices_leave_the_current_one_alone():
    simulation = Simulation(3, abi.CONTIGUOUS, False)
    for device, end in enumerate(simulation.world.endpoints):
        end.device = device
    assert simulation.enqueue() == abi.OK
    assert simulation.sim.sim_current_device() == -1
    assert simulation.finish(0)


# ---- Faults of local worlds ---------------------------------------------------------------------


def test_a_missing_rank_times_out():
    problem = Problem(3, abi.CONTIGUOUS, False)
    world = LocalWorld(3, timeout=0.3)
    start = time.monotonic()
    results = run_threads(problem, world, ranks=[0, 1])
    assert time.monotonic() - start < 5
    assert {r.status for r in results.values()} <= {abi.TIMEOUT, abi.ABORTED}
    late = [r for r in results.values() if r.status == abi.TIMEOUT]
    assert late and all(r.step == 0 and "rank" in r.message for r in late)
    # The world has ended for everybody.
    assert run_all(problem, world) == abi.ABORTED
    assert "rank" in last_failure().message
    world.close()


def test_abort_wakes_everybody():
    problem = Problem(4, abi.CONTIGUOUS, False)
    world = LocalWorld(4, timeout=60)
    timer = threading.Timer(0.2, lambda: world.lib.baracuda_local_world_abort(world.handle))
    timer.start()
    start = time.monotonic()
    results = run_threads(problem, world, ranks=[0, 1, 3])
    assert time.monotonic() - start < 10
    assert {r.status for r in results.values()} == {abi.ABORTED}
    world.close()


def test_differing_sizes_are_a_failure_for_all():
    problem = Problem(3, abi.CONTIGUOUS, False)
    world = LocalWorld(3)
    results = {}

    def drive(rank: int) -> None:
        call = problem.call(rank, world.endpoints[rank])
        if rank == 1:
            problem.kv[rank].piece_bytes[:2] = [problem.k[0].nbytes // 2] * 2
        status = world.lib.baracuda_ring_run(ct.byref(call), 1)
        results[rank] = last_failure() if status else None

    threads = [threading.Thread(target=drive, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert all(results.values())
    mismatch = [r for r in results.values() if r.status == abi.INVALID_ARGUMENT]
    assert mismatch and "bytes" in mismatch[0].message
    assert {r.status for r in results.values()} <= {abi.INVALID_ARGUMENT, abi.ABORTED}
    world.close()


def test_late_ranks_are_waited_for():
    problem = Problem(4, abi.ZIGZAG, True)
    world = LocalWorld(4)
    results = run_threads(problem, world, delay=lambda rank: 0.05 * ((rank * 7) % 4))
    assert set(results.values()) == {None} and problem.is_right()
    world.close()


def test_warm_up_and_single_messages():
    world = LocalWorld(3)
    buffers = np.zeros((3, 384), np.uint8)
    for rank in range(3):
        for place in range(3):
            buffers[rank, place * 64 : place * 64 + 64] = 10 * rank + place
    results = {}

    def drive(rank: int) -> None:
        results[rank] = world.lib.baracuda_ring_warm_up(
            ct.byref(world.endpoints[rank]), ct.c_void_p(buffers[rank].ctypes.data)
        )

    threads = [threading.Thread(target=drive, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(results.values()) == {abi.OK}
    for rank in range(3):
        got = buffers[rank, 192::64]
        assert list(got) == [10 * rank, 10 * ((rank - 1) % 3) + 1, 10 * ((rank + 1) % 3) + 2]
    # A message outside a group makes a group of its own.
    transport = world.endpoints[0].transport
    assert transport.send(transport.context, buffers.ctypes.data, 8, 9, None) == 1
    assert "peer 9" in last_failure().message
    world.close()


def test_two_threads_cannot_drive_one_rank():
    world = LocalWorld(2)
    transport = world.endpoints[0].transport
    assert transport.group_start(transport.context) == abi.OK
    results = []

    def other() -> None:
        results.append(transport.group_start(transport.context))
        results.append(last_failure().message)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert results[0] == abi.INVALID_ARGUMENT and "another thread" in results[1]
    assert transport.group_end(transport.context) == abi.OK
    world.close()


# ---- The caller's own transport, and preconditions ----------------------------------------------


def test_a_callers_own_transport_and_its_codes():
    """Python functions as the transport: called in order, their codes kept, the group closed."""
    problem = Problem(2, abi.CONTIGUOUS, False)
    world = LocalWorld(2)
    for failing in ("group_start", "send", "recv", "group_end"):
        log = []

        def answer(name: str, failing: str = failing, log: list = log) -> int:
            log.append(name)
            return 1234 if name == failing else 0

        end = world.endpoints[0]
        transport = abi.Transport(
            struct_size=ct.sizeof(abi.Transport),
            rank=0,
            world_size=2,
            group_start=abi.GroupFn(lambda _: answer("group_start")),
            send=abi.MessageFn(lambda *_: answer("send")),
            recv=abi.MessageFn(lambda *_: answer("recv")),
            group_end=abi.GroupFn(lambda _: answer("group_end")),
        )
        mine = abi.Endpoint(
            struct_size=ct.sizeof(abi.Endpoint),
            transport=transport,
            exchange=abi.library().baracuda_send_recv_exchange(),
            device=-1,
            ops=end.ops,
        )
        call = problem.call(0, mine)
        assert world.lib.baracuda_ring_run(ct.byref(call), 1) == abi.TRANSPORT_ERROR
        failure = last_failure()
        assert (failure.code, failure.rank, failure.step) == (1234, 0, 0)
        assert failure.call == failing
        assert log.count("group_start") == 1
        assert log.count("group_end") == (0 if failing == "group_start" else 1)
    world.close()


def give_payloads(call, count, pieces):
    """Replaces the call's payload by `count` copies with some more, empty pieces."""
    payloads = (abi.Payload * count)(*[call.payloads[0]] * count)
    for payload in payloads:
        payload.pieces = pieces
    call.payloads, call.payload_count = payloads, count


def test_preconditions_are_refused_before_anything_moves():
    problem = Problem(3, abi.CONTIGUOUS, False)
    world = LocalWorld(3)
    kv, part = (lambda: problem.kv[0]), (lambda: problem.parts[0])
    no_launch = abi.Program.from_buffer_copy(
        abi.library().baracuda_attention_ring_program().contents
    )
    no_launch.launch = abi.ProgramFn(0)
    changes = {
        "struct_size": lambda c: setattr(c, "struct_size", 8),
        "layout": lambda c: setattr(part(), "layout", 3),
        "piece_bytes[0]": lambda c: kv().piece_bytes.__setitem__(0, -1),
        "piece_bytes[1]": lambda c: kv().piece_bytes.__setitem__(1, 2**62),
        "hops": lambda c: setattr(c, "hops", None),
        "hops[0]": lambda c: setattr(c.hops[0], "send_to", 3),
        "endpoint": lambda c: setattr(c, "endpoint", None),
        "exchange": lambda c: setattr(c.endpoint.contents, "exchange", None),
        "buffers[1]": lambda c: kv().buffers.__setitem__(1, None),
        "buffers[0]": lambda c: kv().buffers.__setitem__(0, None),
        "own[0]": lambda c: kv().own.__setitem__(0, None),
        "timing": lambda c: setattr(kv(), "timing", 2),
        "payloads[0].part": lambda c: setattr(kv(), "part", 1),
        "pieces": lambda c: setattr(kv(), "pieces", 5),
        "payload_count": lambda c: setattr(c, "payload_count", 5),
        "payloads: got 12 messages": lambda c: give_payloads(c, 3, pieces=4),
        "program: struct_size": lambda c: setattr(c, "program", None),
        "launch must be set": lambda c: setattr(c, "program", ct.pointer(no_launch)),
        "program->add": lambda c: setattr(kv(), "timing", abi.BEHIND),
        "problem": lambda c: setattr(c, "problem", None),
        "device_maps": lambda c: setattr(part().step, "device_maps", 1),
        "query_len": lambda c: setattr(part().step, "query_len", -1),
        "world_size 3": lambda c: setattr(part().step, "key_len", 2**62),
    }
    for name, change in changes.items():
        exchange = world.endpoints[0].exchange
        call = problem.call(0, world.endpoints[0])
        change(call)
        assert world.lib.baracuda_ring_run(ct.byref(call), 1) == abi.INVALID_ARGUMENT, name
        assert name in last_failure().message, (name, last_failure())
        world.endpoints[0].exchange = exchange
    calls = problem.calls(world.endpoints)
    problem.kv[1].piece_bytes[0] -= 8
    assert world.lib.baracuda_ring_run(calls, 3) == abi.INVALID_ARGUMENT
    assert "calls[1]" in last_failure().message
    assert (problem.y == 77).all()
    world.close()


# ---- Host cost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_the_loop_itself_takes_no_time_worth_mentioning(ranks):
    """4 µs a step is what may come on top of the driver's and NCCL's calls; the best of a few, for
    this machine may be busy."""
    assert min(time_calls().loop(ranks, 2000 // ranks) for _ in range(10)) < 4.0
