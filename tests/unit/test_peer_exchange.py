"""The peer exchange on host memory: choice of hops, order on simulated streams, faults."""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import host_peers as peers
from helpers import ring_abi as abi
from helpers.host_peers import Peers, on_threads
from helpers.ring_abi import LocalWorld, last_failure
from helpers.sum_ring import SumRing

WAITS = (peers.EVENT, peers.VALUE, peers.GATE)
PROGRAMS = [(1, False), (1, True), (2, False), (2, True)]


@pytest.fixture(autouse=True)
def host_works():
    yield
    peers.host().host_peer_fail(0)
    peers.host().host_peer_push_to(None, -1)


def register(connected: Peers, ring: SumRing) -> None:
    for buffers in (ring.beside, ring.behind):
        assert connected.register(list(buffers)) == [None] * ring.world_size


def run_threads(ring: SumRing, world: LocalWorld, delay=lambda _rank: 0.0) -> list:
    def drive(rank: int):
        time.sleep(delay(rank))
        call = ring.call(rank, world.endpoints[rank])
        status = world.lib.baracuda_ring_run(ct.byref(call), 1)
        return last_failure() if status else None

    return on_threads(ring.world_size, drive)


# ---- Which hops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_hops_of_one_host_push_and_give_the_answer(world_size, wait):
    """On a rank's thread everything is done as it is enqueued, as where all streams share a queue of
    the device: nothing may wait for what comes later."""
    world = LocalWorld(world_size)
    connected = Peers(world, wait=wait)
    assert connected.failures == [None] * world_size
    assert all(connected.reasons(r) == [peers.WORKS] * world_size for r in range(world_size))
    rings = [SumRing(world_size, parts=parts, launch_adds=adds) for parts, adds in PROGRAMS]
    for ring in [*rings, SumRing(world_size, beside_alone=True)]:
        register(connected, ring)
        for _ in range(3):
            ring.reset()
            assert run_threads(ring, world) == [None] * world_size
            assert ring.is_right()
    assert connected.close() == [0] * world_size
    world.close()


@pytest.mark.parametrize("never", [(1,), (0, 2), (0, 1, 2, 3)])
def test_a_hop_needs_both_of_its_ranks_and_others_still_push(never):
    world = LocalWorld(4)
    wishes = [peers.NEVER if r in never else peers.AUTO for r in range(4)]
    connected = Peers(world, wishes=wishes)
    expected = [
        peers.NOT_ASKED if r in never or (r + 1) % 4 in never else peers.WORKS for r in range(4)
    ]
    assert all(connected.reasons(r) == expected for r in range(4))
    ring = SumRing(4)
    register(connected, ring)
    for _ in range(3):
        ring.reset()
        assert run_threads(ring, world) == [None] * 4
        assert ring.is_right()
    connected.close()
    world.close()


@pytest.mark.parametrize(
    ("what", "reason"),
    [(2, peers.NO_ACCESS), (3, peers.NO_SHARED_FILE), (4, peers.ONE_PROCESS)],
)
def test_what_does_not_work_goes_by_the_transport_and_says_why(what, reason):
    world = LocalWorld(2)
    peers.host().host_peer_fail(what)
    before = set(os.listdir("/dev/shm"))
    connected = Peers(world, trial_seconds=0.2)
    assert connected.reasons() == connected.reasons(1) == [reason] * 2
    assert set(os.listdir("/dev/shm")) <= before
    ring = SumRing(2)
    register(connected, ring)
    assert run_threads(ring, world) == [None] * 2
    assert ring.is_right()
    connected.close()
    world.close()


def test_a_rank_without_memory_for_the_trial_says_so():
    """All ranks go by the transport. Without its word they would wait for it."""
    abi.in_new_process(
        """
        from helpers import host_peers as peers
        from helpers.sum_ring import SumRing
        world = abi.LocalWorld(3, timeout=10)
        peers.library(), peers.host()
        ct.CDLL(None).fail_calloc(ct.c_size_t(4096))  # the next of this size: of the trial
        connected = peers.Peers(world)
        assert ct.CDLL(None).failed_callocs() == 1
        assert connected.failures == [None] * 3, connected.failures
        reasons = connected.reasons(0)
        assert sorted(reasons) == [peers.WORKS, *[peers.TRIAL_FAILED] * 2], reasons
        assert reasons == connected.reasons(1) == connected.reasons(2)
        rank = reasons.index(peers.TRIAL_FAILED)
        said = peers.library().baracuda_peer_detail_of(connected.handles[0], rank).decode()
        assert "no memory" in said, said
        ring = SumRing(3)
        for buffers in (ring.beside, ring.behind):
            assert connected.register(list(buffers)) == [None] * 3
        def drive(rank):
            call = ring.call(rank, world.endpoints[rank])
            return world.lib.baracuda_ring_run(ct.byref(call), 1)
        assert peers.on_threads(3, drive) == [abi.OK] * 3
        assert ring.is_right()
        connected.close()
        world.close()
        """,
        preload=abi.build_helper("fail_calloc.cpp"),
    )


def test_a_rank_without_a_device_says_so():
    world = LocalWorld(3)
    connected = Peers(world, without_device=(2,))
    assert connected.reasons(1) == [peers.WORKS, peers.NO_DEVICE, peers.NO_DEVICE]
    connected.close()
    world.close()


def test_required_fails_on_every_rank_alike():
    world = LocalWorld(3)
    connected = Peers(world, wishes=[peers.REQUIRED, peers.AUTO, peers.NEVER])
    assert {f.status for f in connected.failures} == {abi.UNSUPPORTED}
    assert len({f.message for f in connected.failures}) == 1
    assert "rank 2 to rank 0" in connected.failures[0].message
    world.close()


def test_required_refuses_a_buffer_that_is_not_registered():
    world = LocalWorld(2)
    connected = Peers(world, wishes=peers.REQUIRED)
    ring = SumRing(2)
    failures = run_threads(ring, world)
    assert [f.status for f in failures] == [abi.INVALID_ARGUMENT] * 2
    assert "register" in failures[0].message
    connected.close()
    world.close()


def test_buffers_that_are_not_registered_go_by_the_transport():
    world = LocalWorld(3)
    connected = Peers(world)
    ring = SumRing(3)
    assert run_threads(ring, world) == [None] * 3
    assert ring.is_right()
    connected.close()
    world.close()


def test_the_shared_file_is_the_users_alone_and_gone_at_once():
    world = LocalWorld(2)
    connected = Peers(world)
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "baracuda-" in line
            and "/dev/shm/" in line]  # fmt: skip
    assert maps and all(line.endswith("(deleted)") for line in maps)
    descriptors = [
        os.stat(f"/proc/self/fd/{fd}").st_mode & 0o777
        for fd in os.listdir("/proc/self/fd")
        if "/dev/shm/baracuda-" in _target(fd)
    ]
    assert descriptors and set(descriptors) == {0o600}
    connected.close()
    after = Path("/proc/self/maps").read_text()
    assert not any("/dev/shm/baracuda-" in line for line in after.splitlines())
    world.close()


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


# ---- Faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS)
def test_a_rank_that_is_late_by_a_run_is_waited_for(wait):
    """The other ranks run ahead as far as the words allow."""
    world = LocalWorld(4)
    connected = Peers(world, wait=wait)
    rings = [SumRing(4, seed=seed, staged=True) for seed in range(3)]
    memory = rings[0]
    for ring in rings:  # the same buffers, staged again for every run
        ring.beside, ring.behind = memory.beside, memory.behind
    register(connected, memory)
    memory.reset()

    def drive(rank: int):
        time.sleep(0.3 if rank == 2 else 0)
        for ring in rings:
            ring.y[rank] = 0
            ring.beside[rank, 0] = np.stack([ring.a[rank], ring.b[rank]])
            call = ring.call(rank, world.endpoints[rank])
            status = world.lib.baracuda_ring_run(ct.byref(call), 1)
            ring.beside[rank] = np.nan
            if status:
                return last_failure()
        return None

    assert on_threads(4, drive) == [None] * 4
    assert all(ring.is_right() for ring in rings)
    connected.close()
    world.close()


@pytest.mark.parametrize(
    ("status", "found_as"),
    [(s, s) for s in (abi.ABORTED, abi.TIMEOUT, abi.NCCL_ERROR, abi.INVALID_ARGUMENT)]
    + [(s, abi.ABORTED) for s in (abi.CUDA_ERROR, abi.OUT_OF_MEMORY, abi.INTERRUPTED)],
)
def test_an_abort_ends_every_wait_and_fails_every_rank(status, found_as):
    """It is the same on every rank, unless it is a fault of the rank's process."""
    reason = abi.Error(status=status, code=6, rank=-1, step=2, call=b"attempt", message=b"had enough")
    world = LocalWorld(3)
    connected = Peers(world)
    ring = SumRing(3)
    register(connected, ring)

    def drive(rank: int):
        if rank == 1:  # does not run; it aborts
            time.sleep(0.2)
            connected.abort(1, reason)
            return "aborted"
        call = ring.call(rank, world.endpoints[rank])
        world.lib.baracuda_ring_run(ct.byref(call), 1)
        return connected.check(rank)

    start = time.monotonic()
    found = on_threads(3, drive)
    assert time.monotonic() - start < 5
    for rank in (0, 2):
        assert (found[rank].status, found[rank].code, found[rank].rank) == (found_as, 6, rank)
        assert found[rank].step == 2
        assert "rank 1" in found[rank].message and "attempt: had enough" in found[rank].message
    # Every later run is refused.
    call = ring.call(0, world.endpoints[0])
    assert world.lib.baracuda_ring_run(ct.byref(call), 1) == found_as
    connected.close()
    world.close()


def test_ranks_with_other_problems_are_refused_instead_of_misread():
    world = LocalWorld(2)
    connected = Peers(world)
    ring = SumRing(2, count=8)
    register(connected, ring)
    shorter = SumRing(2, count=5)
    shorter.beside, shorter.behind = (  # in the same registered memory
        np.ndarray(x.shape, buffer=into.data, strides=(into.strides[0], *x.strides[1:]))
        for x, into in ((shorter.beside, ring.beside), (shorter.behind, ring.behind))
    )

    def drive(rank: int):
        call = (ring, shorter)[rank].call(rank, world.endpoints[rank])
        status = world.lib.baracuda_ring_run(ct.byref(call), 1)
        return last_failure() if status else connected.check(rank)

    found = on_threads(2, drive)
    assert all(f is not None for f in found)
    assert any("differ" in f.message for f in found)
    connected.close()
    world.close()


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("never", [(), (0,), (0, 1, 2)])
@pytest.mark.parametrize(("rank", "step"), [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_a_launch_that_fails_before_its_sum_is_sent_ends_the_ring(rank, step, never, wait):
    """By the words, and by the transport where the hops of some ranks, or all, go by it."""
    world = LocalWorld(3, timeout=30)
    wishes = [peers.NEVER if r in never else peers.AUTO for r in range(3)]
    connected = Peers(world, wait=wait, wishes=wishes)
    ring = SumRing(3)
    register(connected, ring)

    def drive(r: int):
        call = ring.call(r, world.endpoints[r])
        program = abi.Program.from_buffer_copy(call.program.contents)
        launch = abi.ProgramFn(ct.cast(program.launch, ct.c_void_p).value)

        def fail(problem, at):
            return abi.CUDA_ERROR if at.contents.step == step else launch(problem, at)

        if r == rank:
            program.launch = abi.ProgramFn(fail)
            call.program = ct.pointer(program)
        status = world.lib.baracuda_ring_run(ct.byref(call), 1)
        # On a device the words end waits that the run has only enqueued.
        return last_failure() if status else connected.check(r)

    start = time.monotonic()
    found = on_threads(3, drive)
    assert time.monotonic() - start < 5
    assert (found[rank].status, found[rank].rank, found[rank].step) == (abi.CUDA_ERROR, rank, step)
    _, home = ring.expected()
    for r, failure in enumerate(found):
        if failure is None:
            assert r != (rank + 1) % 3 and np.array_equal(ring.home[r], home[r])
        elif r != rank:
            assert failure.status == abi.ABORTED and f"rank {rank}" in failure.message, failure
            assert "launch" in failure.message
    # Every later run is refused, on the rank that failed, too.
    again = run_threads(ring, world)
    assert all(failure.status == abi.ABORTED for failure in again), again
    connected.close()
    world.close()


def test_a_margin_is_left_on_ranks_with_a_hop_by_the_transport_alone():
    world = LocalWorld(4)
    for end in world.endpoints:
        end.max_ctas = 8
    connected = Peers(world, wishes=[peers.NEVER, peers.AUTO, peers.AUTO, peers.AUTO])
    ring = SumRing(4, beside_alone=True)
    register(connected, ring)
    margins: dict[int, set[int]] = {rank: set() for rank in range(4)}

    def drive(rank: int):
        call = ring.call(rank, world.endpoints[rank])
        program = abi.Program.from_buffer_copy(call.program.contents)
        launch = abi.ProgramFn(ct.cast(program.launch, ct.c_void_p).value)

        def watched(problem, at):
            if at.contents.step < 3:  # the last step has no exchange
                margins[rank].add(at.contents.sm_margin)
            return launch(problem, at)

        program.launch = abi.ProgramFn(watched)
        call.program = ct.pointer(program)
        return world.lib.baracuda_ring_run(ct.byref(call), 1)

    ring.reset()
    assert on_threads(4, drive) == [abi.OK] * 4
    assert ring.is_right()
    assert margins == {0: {8}, 1: {8}, 2: {0}, 3: {8}}
    connected.close()
    world.close()


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_what_a_call_receives_can_be_asked_before_it_runs(world_size):
    """With two ranks only one buffer receives BESIDE payloads."""
    world = LocalWorld(world_size)
    ring = SumRing(world_size, staged=True)
    call = ring.call(1, world.endpoints[1])
    rounds = []
    for number in range(world_size + 1):
        round_ = abi.Round()
        world.lib.baracuda_ring_messages(ct.byref(call), number, ct.byref(round_))
        assert round_.number == number and round_.stream is None
        rounds.append(
            [(m.data, m.bytes, m.peer) for m in round_.receives[: round_.receive_count]]
        )
    beside, behind = ring.beside[1], ring.behind[1]
    found = {data for received in rounds for data, _, _ in received}
    places = {x.ctypes.data for x in beside[:2]} | {beside[1, 1].ctypes.data}
    if world_size == 2:
        places -= {beside[0].ctypes.data}
    sums = {x.ctypes.data for part in behind for x in part[: min(2, world_size)]}
    assert places <= found <= places | sums
    assert {peer for received in rounds for _, _, peer in received} == {0}
    assert rounds[0] == [(x.ctypes.data, x.nbytes, 0) for x in beside[1]]
    world.close()


def test_pieces_of_one_allocation_are_one_copy():
    """Rows of one, whether they touch, as staged K and V do, or not. Of two allocations, which may touch
    as well, they are two."""
    rowed = peers.host().host_peer_rowed
    for staged, cannot, expected in (
        (True, 0, (0, 1)), (True, 6, (2, 0)), (False, 0, (0, 1)), (False, 6, (2, 0)),
    ):  # fmt: skip
        world = LocalWorld(2)
        connected = Peers(world)
        ring = SumRing(2, staged=staged, beside_alone=True)
        register(connected, ring)
        peers.host().host_peer_fail(cannot)
        before = rowed()
        with counted_copies(world) as copies:
            ring.reset()
            assert run_threads(ring, world) == [None] * 2
        assert ring.is_right()
        assert (len(copies), rowed() - before) == tuple(2 * n for n in expected), staged
        assert sum(copies) == (0 if expected[1] else ring.beside[:, 0].nbytes)
        connected.close()
        world.close()


@contextlib.contextmanager
def counted_copies(world):
    """The bytes of the copies of a world's endpoints, in order."""
    copies = []
    kept = [end.ops for end in world.endpoints]
    for end in world.endpoints:
        ops = abi.StreamOps.from_buffer_copy(end.ops.contents)
        # A copy of the pointer: the field itself is replaced.
        copy = type(ops.copy)(ct.cast(ops.copy, ct.c_void_p).value)

        def counting(into, source, nbytes, stream, copy=copy):
            copies.append(nbytes)
            return copy(into, source, nbytes, stream)

        ops.copy = type(ops.copy)(counting)
        end.ops = ct.pointer(ops)
    yield copies
    for end, ops in zip(world.endpoints, kept, strict=True):
        end.ops = ops


@pytest.mark.parametrize("gone", [(1,), (1, 2)])
def test_close_ends_what_waits_for_neighbours_that_have_closed(gone):
    """A run that they had not begun waits for good; one of which a neighbour is still there may not."""
    world = LocalWorld(3)
    connected = Peers(world)
    register(connected, SumRing(3))
    lib, stays = peers.library(), ct.c_int32()

    def close(rank: int, seconds: float) -> int:
        return lib.baracuda_peer_close(connected.handles[rank], seconds, stays)

    assert on_threads(3, lambda r: close(r, 5.0) if r in gone else 0) == [abi.OK] * 3
    peers.host().host_peer_fail(5)
    start = time.monotonic()
    status = close(0, 2.0)
    seconds = time.monotonic() - start
    if len(gone) == 2:
        assert status == abi.OK and 0.4 < seconds < 1.9
    else:
        assert status == abi.TIMEOUT and stays.value == 1 and seconds >= 2
        assert connected.check(2) is None
        peers.host().host_peer_fail(0)
        assert close(2, 1.0) == abi.OK
    world.close()


# The words of a rank, by their offset.
KINDS = ("granted", "full", *["arrived"] * 4, "read", "idle")

# ---- Order --------------------------------------------------------------------------------------


class Simulation:
    """Runs of a staged ring of the test op on simulated streams, all enqueued before anything runs.
    a and b arrive on the callers' streams just before each run, and every buffer is poisoned there
    just before and just after it."""

    def __init__(self, world_size: int, parts: int = 1, launch_adds: bool = False, *, runs: int = 2,
                 wait: int = peers.EVENT, dropped_word: int = -1, dropped_event: int = -1,
                 wishes=peers.AUTO, live=None, beside_alone: bool = False,
                 apart: bool = False) -> None:  # fmt: skip
        self.size, self.lib = world_size, peers.library()
        self.world = LocalWorld(world_size)
        self.peers = Peers(self.world, wait=wait, wishes=wishes)
        self.rings = [
            SumRing(world_size, parts=parts, launch_adds=launch_adds, staged=True, seed=seed,
                    live=live, beside_alone=beside_alone)
            for seed in range(runs)
        ]  # fmt: skip
        for ring in self.rings[1:]:
            if apart:
                register(self.peers, ring)
            else:
                ring.beside, ring.behind = self.rings[0].beside, self.rings[0].behind
        register(self.peers, self.rings[0])
        abi.reset_simulator(max(dropped_event, 0), 0 if dropped_event < 0 else 1)
        self.sim = abi.simulator()
        self.ops = self.sim.sim_stream_ops().contents
        self.enqueue_task = ct.cast(self.sim.sim_enqueue, ct.c_void_p)
        self.held: list[np.ndarray] = []
        # From here on the same endpoints use simulated streams.
        for end in self.world.endpoints:
            end.ops = self.sim.sim_stream_ops()
            exchange, context = end.exchange, end.exchange_context
            end.exchange = exchange
            assert self.lib.baracuda_ring_endpoint_open(ct.byref(end)) == abi.OK
            assert (end.exchange, end.exchange_context) == (exchange, context)
        self.streams_of = []
        for _ in range(runs if apart else 1):
            self.streams_of.append([])
            for _ in range(world_size):
                stream = ct.c_void_p()
                self.ops.stream_create(stream, 0)
                self.streams_of[-1].append(stream.value)
        peers.host().host_peer_push_to(self.enqueue_task, dropped_word)

    def run(self, seed: int) -> bool:
        for number, ring in enumerate(self.rings):
            self.streams = self.streams_of[number % len(self.streams_of)]
            for x in (ring.beside, ring.behind, ring.home):
                self.copy(x, np.full_like(x, np.nan))
            ring.y[:] = 0
            self.copy(ring.beside[:, 0], np.stack([ring.a, ring.b], axis=1))
            for call in ring.calls(self.world.endpoints, self.streams, self.enqueue_task):
                status = self.lib.baracuda_ring_run(ct.byref(call), 1)
                assert status == abi.OK, last_failure()
            for x in (ring.beside, ring.behind):
                self.copy(x, np.full_like(x, np.nan))
        lib = peers.host()
        self.kinds = [KINDS[lib.host_peer_waited(n)] for n in range(lib.host_peer_waits())]
        self.events = self.sim.sim_waits()
        left = self.sim.sim_run(seed)
        return left == 0 and all(ring.is_right() for ring in self.rings)

    def copy(self, into: np.ndarray, what: np.ndarray) -> None:
        self.held.append(what)
        for rank, stream in enumerate(self.streams):
            source, target = what[rank], into[rank]
            self.ops.copy(target.ctypes.data, source.ctypes.data, source.nbytes, stream)

    def close(self) -> None:
        peers.host().host_peer_push_to(None, -1)
        self.peers.close()
        self.lib.baracuda_local_world_destroy(self.world.handle)


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize(("parts", "launch_adds"), PROGRAMS)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_order_of_the_streams_gives_the_answer(world_size, parts, launch_adds, wait):
    rng = np.random.default_rng(world_size)
    for seed in range(8):
        live = None if seed % 2 else rng.random((world_size, world_size)) < 0.5
        simulation = Simulation(world_size, parts, launch_adds, wait=wait, runs=3, live=live)
        assert simulation.run(seed), seed
        simulation.close()


def not_needed(make, numbers, seeds: int = 150) -> list[int]:
    """The waits without which the result is still right in every order that was tried."""

    def is_right(number: int, seed: int) -> bool:
        simulation = make(number)
        right = simulation.run(seed)
        simulation.close()
        return right

    return [n for n in numbers if all(is_right(n, seed) for seed in range(seeds))]


@pytest.mark.parametrize("beside_alone", [False, True])
@pytest.mark.parametrize("wait", WAITS)
def test_every_wait_for_a_word_is_needed(wait, beside_alone):
    """Waits for grants, fills and arrivals, and the signals of a gate."""
    options = {"wait": wait, "beside_alone": beside_alone}
    simulation = Simulation(3, **options)
    assert simulation.run(0)
    simulation.close()
    kinds = simulation.kinds
    # The caller's own wait counts where what arrives is not sent on, and where a gate tells the next
    # grant of it. Of idle see the next test.
    may_miss = set() if wait == peers.EVENT else {"full", "idle"}

    def missed_of(numbers, seeds):
        return not_needed(lambda n: Simulation(3, dropped_word=n, **options), numbers, seeds)

    needed = [n for n, kind in enumerate(kinds) if kind not in may_miss]
    missed = missed_of(needed, 150)
    assert not missed, [kinds[n] for n in missed]
    if may_miss and not (wait == peers.GATE and beside_alone):
        # One of them is needed. Fewer orders show that.
        fulls = [n for n, kind in enumerate(kinds) if kind == "full"]
        assert len(missed_of(fulls, 30)) < len(fulls)


@pytest.mark.parametrize("wait", WAITS)
def test_runs_of_other_streams_follow_one_another(wait):
    """Each run has its own stream and buffers, but the same words."""
    options = {"wait": wait, "beside_alone": True, "apart": True}
    for seed in range(40):
        simulation = Simulation(3, **options)
        assert simulation.run(seed)
        simulation.close()
    kinds = simulation.kinds
    if wait != peers.EVENT:
        needed = [n for n in range(len(kinds)) if kinds[n] == "idle"][3:]  # the second run's

        missed = not_needed(lambda n: Simulation(3, dropped_word=n, **options), needed)
        assert len(missed) < len(needed)


@pytest.mark.parametrize("wait", WAITS)
def test_every_event_is_needed(wait):
    options = {"wait": wait, "runs": 1, "beside_alone": True}
    simulation = Simulation(3, **options)
    assert simulation.run(0)
    simulation.close()
    events = range(simulation.events)
    missed = not_needed(lambda n: Simulation(3, dropped_event=n, **options), events)
    assert not missed, f"nothing needs {missed} of {len(events)}"


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("step", range(3))
def test_after_a_failed_launch_no_stream_waits_for_good(step, wait):
    """Whether the other ranks have enqueued their runs before the failure or do so after it. The
    caller's stream joins the ring's, which the end of a capture demands."""
    for first in range(3):
        simulation = Simulation(3, runs=1, wait=wait)
        ring, ranks = simulation.rings[0], [(first + i) % 3 for i in range(3)]
        streams = simulation.streams_of[0]
        statuses = {}
        for rank in ranks:
            end = simulation.world.endpoints[rank]
            call = ring.call(rank, end, streams[rank], simulation.enqueue_task)
            if rank == 1:
                program = abi.Program.from_buffer_copy(call.program.contents)
                launch = abi.ProgramFn(ct.cast(program.launch, ct.c_void_p).value)

                def fail(problem, at, launch=launch):
                    return abi.CUDA_ERROR if at.contents.step == step else launch(problem, at)

                program.launch = abi.ProgramFn(fail)
                call.program = ct.pointer(program)
            statuses[rank] = simulation.lib.baracuda_ring_run(ct.byref(call), 1)
        assert statuses[1] == abi.CUDA_ERROR
        # A run that begins after the failure is refused.
        later = ranks[ranks.index(1) + 1 :]
        assert all(statuses[rank] == abi.ABORTED for rank in later), (first, statuses)
        lines = [line.split() for line in simulation.sim.sim_log().decode().splitlines()]
        name = f"user{3 + 1}"
        last_of_ring = max(i for i, (_, at) in enumerate(lines) if at == "ring1")
        last_of_user = max(i for i, (_, at) in enumerate(lines) if at == name)
        assert lines[last_of_ring][0] == "record" and lines[last_of_user][0] == "wait"
        assert last_of_ring < last_of_user
        assert simulation.sim.sim_run(first) == 0, "a stream waits for good"
        assert all(simulation.peers.check(rank) is not None for rank in range(3))
        simulation.close()


@pytest.mark.parametrize("wait", WAITS)
def test_room_for_sums_is_granted_before_the_launch_that_they_follow(wait):
    """The buffer is free by then, so the neighbour's copy need not wait for this rank's launch."""
    simulation = Simulation(2, runs=1, wait=wait)
    assert simulation.run(0)
    lines = [line.split() for line in simulation.sim.sim_log().decode().splitlines()]
    mine = [what for what, at in lines if at == "ring0"]
    simulation.close()
    last = len(mine) - 1 - mine[::-1].index("wait")  # for the last launch
    copies = [i for i, what in enumerate(mine) if what == "copy"]
    assert max(i for i in copies if i < last) < last - 1 and mine[last - 1] == "write"
    # After it, only the wait for the other rank's buffer comes before the copy.
    assert mine[last + 1 : last + 3] == ["await", "copy"], mine
