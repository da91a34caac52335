"""What travels beside and behind the steps, by a test op: answers, order, and each event needed."""

from __future__ import annotations

import ctypes as ct
import itertools
import threading
import time

import numpy as np
import pytest
from helpers import ring_abi as abi
from helpers.c_headers import structure
from helpers.rank_threads import on_ranks
from helpers.ring_abi import LocalWorld, last_failure
from helpers.sum_ring import SumRing, pushes

# parts, launch_adds
PROGRAMS = [(1, False), (1, True), (2, False), (2, True)]


def masks(world_size: int):
    """Which steps compute anything: all, as under a causal mask, none of the first two, few, none."""
    every = np.ones((world_size, world_size), bool)
    yield every
    yield np.tril(every)
    rank, origin = np.indices(every.shape)
    yield (rank - origin) % world_size > 1
    yield np.random.default_rng(world_size).random(every.shape) < 0.3
    yield ~every


@pytest.mark.parametrize(("parts", "launch_adds"), PROGRAMS)
@pytest.mark.parametrize("world_size", range(1, 10))
def test_sums_come_home_in_the_order_of_the_schedule(world_size, parts, launch_adds):
    for live in masks(world_size):
        ring = SumRing(world_size, parts=parts, launch_adds=launch_adds, live=live)
        world = LocalWorld(world_size)
        assert world.lib.baracuda_ring_run(ring.calls(world.endpoints), world_size) == abi.OK, (
            last_failure()
        )
        assert ring.is_right(), live
        ring.reset()
        threads = [
            threading.Thread(target=drive, args=(ring, world, rank)) for rank in range(world_size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert ring.is_right(), live
        world.close()


def drive(ring: SumRing, world: LocalWorld, rank: int) -> None:
    call = ring.call(rank, world.endpoints[rank])
    assert world.lib.baracuda_ring_run(ct.byref(call), 1) == abi.OK, last_failure()


class Simulation:
    """A staged ring of the test op on simulated streams: a and b arrive on the callers' streams just
    before the run, and every buffer is poisoned on them just before and just after it."""

    def __init__(
        self, world_size: int, parts: int, launch_adds: bool, *, live=None, dropped: int = -1,
        one_stream: bool = False, push: bool = False,
    ) -> None:  # fmt: skip
        abi.reset_simulator(0 if push else dropped, 0 if push or dropped < 0 else 1)
        self.sim = abi.simulator()
        self.ops = self.sim.sim_stream_ops().contents
        self.ring = SumRing(
            world_size, parts=parts, launch_adds=launch_adds, live=live, staged=True
        )
        self.world = LocalWorld(world_size, self.sim.sim_stream_ops())
        self.enqueue_task = ct.cast(self.sim.sim_enqueue, ct.c_void_p)
        self.held: list[np.ndarray] = []
        self.pushes = None
        if push:
            self.pushes = pushes().push_world(self.enqueue_task, dropped)
            for end in self.world.endpoints:
                end.exchange, end.exchange_context = pushes().push_exchange(), self.pushes
        self.streams = []
        for _ in range(1 if one_stream else world_size):
            stream = ct.c_void_p()
            self.ops.stream_create(stream, 0)
            self.streams.append(stream.value)
        if one_stream:
            self.streams *= world_size

    def run(self, seed: int) -> bool:
        ring = self.ring
        for x in (ring.beside, ring.behind, ring.home):
            self.copy(x, np.full_like(x, np.nan))
        self.copy(ring.beside[:, 0], np.stack([ring.a, ring.b], axis=1))
        calls = ring.calls(self.world.endpoints, self.streams, self.enqueue_task)
        status = self.world.lib.baracuda_ring_run(calls, ring.world_size)
        assert status == abi.OK, last_failure()
        for x in (ring.beside, ring.behind):
            self.copy(x, np.full_like(x, np.nan))
        right = self.sim.sim_run(seed) == 0 and ring.is_right()
        self.world.close()
        return right

    def copy(self, into: np.ndarray, what: np.ndarray) -> None:
        """On each rank's stream, its part of into."""
        self.held.append(what)
        for rank, stream in enumerate(self.streams):
            source, target = what[rank], into[rank]
            self.ops.copy(target.ctypes.data, source.ctypes.data, source.nbytes, stream)

    def close(self) -> None:
        if self.pushes is not None:
            pushes().push_world_destroy(self.pushes)


@pytest.mark.parametrize("one_stream", [False, True])
@pytest.mark.parametrize("push", [False, True])
@pytest.mark.parametrize(("parts", "launch_adds"), PROGRAMS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_any_order_of_the_streams_gives_the_answer(
    world_size, parts, launch_adds, push, one_stream
):
    for live in masks(world_size):
        for seed in range(4):
            simulation = Simulation(
                world_size, parts, launch_adds, live=live, push=push, one_stream=one_stream
            )
            assert simulation.run(seed), (live, seed)
            simulation.close()


def test_half_of_a_sum_travels_beside_the_other_half():
    """Of two parts the first's sum is sent in the exchange beside the second."""
    simulation = Simulation(4, 2, True)
    assert simulation.run(0)
    lines = [line.split() for line in simulation.sim.sim_log().decode().splitlines()]
    mine = [(what, at) for what, at in lines if at in ("ring0", "user4")]
    # Messages that rank 0 receives, by exchange: a and b; then, beside step s >= 1, first the chunk
    # and the sum of the second part of the step before, then the sum of the first part. The last
    # chunk comes beside step 2, and the sums go home beside step 3 and after it.
    on_ring = [what for what, at in mine if at == "ring0"]
    copies = [len(list(group)) for what, group in itertools.groupby(on_ring) if what == "copy"]
    assert copies == [2, 1, 1, 2, 1, 1, 1, 1]
    order = [what for what, at in mine if at == "user4" and what in ("launch", "add")]
    assert order == ["launch"] * 8 + ["add"] * 2


@pytest.mark.parametrize("parts", [1, 2])
def test_what_a_rank_keeps_for_itself_is_settled_beside_the_last_messages(parts):
    simulation = Simulation(2, parts, False)
    assert simulation.run(0)
    lines = [line.split() for line in simulation.sim.sim_log().decode().splitlines()]
    mine = [what for what, at in lines if at == "user2"]
    begin = len(mine) - 1 - mine[::-1].index("launch")
    # What the messages wait for is recorded ahead of it, and it waits for none of them.
    assert mine[begin : begin + 5] == ["launch", "record", "settle", "wait", "add"]


Marks = structure("ring_marks")


@pytest.mark.parametrize(("parts", "launch_adds"), PROGRAMS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_timeline_has_every_launch_and_every_exchange(world_size, parts, launch_adds):
    lib = abi.library()
    for name in ("baracuda_ring_has_exchange", "baracuda_ring_has_sum"):
        getattr(lib, name).argtypes = [ct.POINTER(abi.Call), ct.c_int32]
    ring = SumRing(world_size, parts=parts, launch_adds=launch_adds)
    logs = {}
    for marked in (False, True):
        abi.reset_simulator()
        sim = abi.simulator()
        ops = sim.sim_stream_ops().contents
        world = LocalWorld(world_size, sim.sim_stream_ops())
        streams = [ct.c_void_p() for _ in range(world_size)]
        for stream in streams:
            ops.stream_create(stream, 0)
        enqueue = ct.cast(sim.sim_enqueue, ct.c_void_p)
        calls = ring.calls(world.endpoints, [stream.value for stream in streams], enqueue)
        count = world_size * parts + 1
        create = ct.CFUNCTYPE(ct.c_int32, ct.c_void_p)(ops.timed_event_create)
        kept = [(Marks * count)() for _ in calls]
        for call, marks in zip(calls, kept, strict=True):
            for i in range(len(Marks._fields_) * count):
                create(ct.addressof(marks) + 8 * i)
            call.marks = ct.addressof(marks) if marked else None
        exchanges = sum(lib.baracuda_ring_has_exchange(calls[0], n) for n in range(count))
        sums = [n for n in range(count) if lib.baracuda_ring_has_sum(calls[0], n)]
        assert lib.baracuda_ring_run(calls, world_size) == abi.OK, last_failure()
        logs[marked] = sim.sim_log().decode().splitlines()
        assert sim.sim_run(0) == 0 and ring.is_right()
        ring.reset()
        world.close()
    recorded = [sum(line.startswith("record") for line in logs[m]) for m in (False, True)]
    # Shares are added from the third step on, unless launches do it; at home after all steps, each
    # part, where one wait begins.
    on_the_way = [] if launch_adds else list(range(2 * parts, world_size * parts))
    home = [world_size * parts] if world_size > 1 else []
    assert sums == on_the_way + home
    adds = 2 * len(on_the_way) + len(home) * (2 + parts)
    adds += 2 * len(home)  # around what is settled beside the last messages
    more = world_size * (3 * world_size * parts + 2 * exchanges + adds)
    assert recorded[1] - recorded[0] == more
    # BESIDE until the last step but one, the sums of each part behind all steps but the first.
    beside = set(range(0, (world_size - 1) * parts, parts))
    behind = {s * parts + h + 1 for s in range(1, world_size) for h in range(parts)}
    assert exchanges == len(beside | behind)


# ---- Every event is needed ----------------------------------------------------------------------


def is_needed(dropped: int, *problem, **options) -> bool:
    """Whether some order that leaving this wait out permits gives a wrong answer."""
    for seed in range(600):
        simulation = Simulation(*problem, dropped=dropped, **options)
        right = simulation.run(seed)
        simulation.close()
        if not right:
            return True
    return False


def loop_waits(simulation: Simulation) -> list[int]:
    """Which waits of a run are the loop's own: of an exchange for the launches before it, and of
    launches for exchanges. The others are the local transport's.

    Left out are waits for an exchange right before one for a later exchange, which covers it.
    """
    ranks = simulation.ring.world_size
    lines = simulation.sim.sim_log().decode().splitlines()
    found, number, on_ring = [], 0, 0
    waiting: dict[str, int] = {}  # of each caller's stream, the wait that it enqueued last
    for what, at in map(str.split, lines):
        if what == "wait" and at.startswith("ring"):
            # Per exchange: each rank's for its launch, then two a rank of the transport.
            if on_ring % (3 * ranks) < ranks:
                found.append(number)
            on_ring += 1
        elif what == "wait":
            waiting[at] = number
        elif what in ("launch", "add") and at in waiting:
            found.append(waiting.pop(at))
        number += what == "wait"
    return sorted(found)


@pytest.mark.parametrize(("parts", "launch_adds"), PROGRAMS)
def test_every_wait_of_the_loop_is_needed(parts, launch_adds):
    ranks = 4
    simulation = Simulation(ranks, parts, launch_adds)
    assert simulation.run(0)
    waits = loop_waits(simulation)
    # Two a rank and exchange: five exchanges, or eight of two parts (the one beside the second part
    # of step 0 has no messages). Launches that add wait for the chunk and for the sum of two
    # exchanges at once, a step.
    assert len(waits) == ranks * (2 * {1: 5, 2: 8}[parts] - launch_adds)
    spare = [wait for wait in waits if not is_needed(wait, ranks, parts, launch_adds)]
    assert not spare


# ---- Failures -----------------------------------------------------------------------------------


def failing(call: abi.Call, name: str, step: int) -> None:
    """Gives the call a copy of its program, of which a function fails at a step."""
    program = abi.Program.from_buffer_copy(call.program.contents)
    real = abi.ProgramFn(ct.cast(getattr(program, name), ct.c_void_p).value)

    def fail(problem, at):
        return abi.CUDA_ERROR if at.contents.step == step else real(problem, at)

    setattr(program, name, abi.ProgramFn(fail))
    call.program = ct.pointer(program)


@pytest.mark.parametrize(
    ("call", "step", "beside_alone"),
    [("launch", 2, True), ("settle", 3, True), ("settle", 3, False), ("add", 4, False)],
)
def test_a_failure_that_is_the_ranks_alone_leaves_the_neighbours_their_messages(
    call, step, beside_alone
):
    """It is reported in the end, with rank and step; every message is sent all the same."""
    ranks, rank = 4, 1
    logs = []
    for fails in (False, True):
        abi.reset_simulator()
        sim = abi.simulator()
        ring = SumRing(ranks, beside_alone=beside_alone)
        world = LocalWorld(ranks, sim.sim_stream_ops())
        enqueue = ct.cast(sim.sim_enqueue, ct.c_void_p)
        stream = ct.c_void_p()
        sim.sim_stream_ops().contents.stream_create(stream, 0)
        calls = ring.calls(world.endpoints, [stream.value] * ranks, enqueue)
        if fails:
            failing(calls[rank], call, step)
        status = world.lib.baracuda_ring_run(calls, ranks)
        log = sim.sim_log().decode().splitlines()
        logs.append([line for line in log if line.startswith("copy")])
        if fails:
            failure = last_failure()
            assert status == failure.status == abi.CUDA_ERROR
            assert (failure.rank, failure.call) == (rank, call)
            # Where sums travel, the last step is followed by the way home.
            assert failure.step == (step if beside_alone else ranks)
        else:
            assert status == abi.OK
        assert sim.sim_run(0) == 0
        world.close()
    assert logs[0] == logs[1]


def run_threads(ring: SumRing, world: LocalWorld, change) -> list:
    """Each rank's failure, or None. change(rank, call) is called before the call runs."""
    def drive(rank: int):
        call = ring.call(rank, world.endpoints[rank])
        change(rank, call)
        status = world.lib.baracuda_ring_run(ct.byref(call), 1)
        return last_failure() if status else None

    return on_ranks(ring.world_size, drive)


def home_is_right(ring: SumRing, rank: int) -> bool:
    y, home = ring.expected()
    return np.array_equal(ring.home[rank], home[rank]) and np.array_equal(ring.y[rank], y[rank])


@pytest.mark.parametrize(("parts", "launch_adds"), PROGRAMS)
@pytest.mark.parametrize("call", ["launch", "add", "clear"])
def test_a_rank_without_its_share_ends_the_ring(call, parts, launch_adds):
    """No rank has another answer: it fails, unless its sums were complete before."""
    ranks = 4
    steps = {"launch": range(4), "add": () if launch_adds else (2, 3), "clear": (0, 1)}[call]
    for rank in range(ranks):
        for step in steps:
            live = np.ones((ranks, ranks), bool)
            live[rank, (rank - step) % ranks] = call != "clear"
            ring = SumRing(ranks, parts=parts, launch_adds=launch_adds, live=live)
            world = LocalWorld(ranks)
            if call == "clear":
                ops = abi.StreamOps.from_buffer_copy(world.ops.contents)
                ops.clear = type(ops.clear)(lambda *_: abi.CUDA_ERROR)
                world.endpoints[rank].ops = ct.pointer(ops)

            def change(r, made, rank=rank, step=step):
                if r == rank and call != "clear":
                    failing(made, call, step)

            begin = time.monotonic()
            results = run_threads(ring, world, change)
            assert time.monotonic() - begin < 5
            failed = results[rank]
            assert (failed.status, failed.rank, failed.step) == (abi.CUDA_ERROR, rank, step)
            assert failed.call == call
            assert results[(rank + 1) % ranks] is not None
            for other, failure in enumerate(results):
                if failure is None:
                    assert home_is_right(ring, other), (rank, step, other)
                elif other != rank:
                    assert failure.status == abi.ABORTED
                    assert f"aborted by rank {rank}: {call}" in failure.message, failure
            world.close()


def test_one_thread_that_drives_all_ranks_ends_the_run_and_not_the_ring():
    ring, world = SumRing(3), LocalWorld(3)
    calls = ring.calls(world.endpoints)
    failing(calls[1], "launch", 1)
    assert world.lib.baracuda_ring_run(calls, 3) == abi.CUDA_ERROR
    assert (last_failure().rank, last_failure().step) == (1, 1)
    ring.reset()
    assert world.lib.baracuda_ring_run(ring.calls(world.endpoints), 3) == abi.OK, last_failure()
    assert ring.is_right()
    world.close()
