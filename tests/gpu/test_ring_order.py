"""Order on real streams: random delays, consumed buffers poisoned, and every wait is needed.

Racecheck sees shared memory alone. Here every kernel and copy is held up at random, on either
stream, and what was consumed is overwritten, so that an order that nothing enforces shows as a
wrong answer. Each wait of the loop is then left out in turn, which must show.
"""

import random

import pytest
from helpers import cuda_ring
from helpers import ring_abi as abi
from helpers.rings import same_bits, shards_of

from baracuda_kernels.testing import torch_qkv

pytestmark = [pytest.mark.gpu, pytest.mark.endurance]

RANKS, ROWS, HEADS, DIM = 3, 256, 2, 64
TRIALS, MOST_TRIALS = 100, 500
_UNIT = 900_000  # cycles, about half a millisecond


class Disturbance:
    """Delays streams for random times, and poisons receive buffers before they are filled."""

    def __init__(self, torch):
        self.torch, self.random, self.on = torch, random.Random(0), False
        self.streams, self.before_receive, self.slowness = {}, {}, {}

    def stream(self, pointer):
        if pointer not in self.streams:
            self.streams[pointer] = self.torch.cuda.ExternalStream(pointer)
        return self.torch.cuda.stream(self.streams[pointer])

    def begin(self):
        """A new run, with a new random choice of slow streams."""
        self.slowness = {}

    def gate(self, pointer):
        """Delays a caller's stream first, so that the whole run is enqueued before it starts."""
        if self.on:
            with self.stream(pointer):
                self.torch.cuda._sleep(10 * _UNIT)

    def delay(self, pointer):
        # Whole streams are slow: otherwise rare orders would hardly ever occur.
        if not self.on:
            return
        slowness = self.slowness.setdefault(pointer, self.random.choice((0, 0, 1, 4)))
        late = slowness * self.random.random() if self.random.random() < 0.7 else 0
        with self.stream(pointer):
            self.torch.cuda._sleep(int(_UNIT * (0.02 + late)))

    def poison(self, pointer):
        """Poisons the buffer that an exchange fills, which has been consumed just before."""
        make = self.before_receive.get(pointer)
        if self.on and make is not None:
            with self.stream(pointer):
                make()


def poison_next(rank):
    """Poisons the buffers in the order in which exchanges fill them; once per exchange."""
    step = 0

    def make():
        nonlocal step
        rank.buffers[(step + 1) % 2].fill_(float("nan"))
        step += 1

    return make


class SelfRun:
    """NCCL to oneself, RANKS steps."""

    def __init__(self, torch, disturbance):
        self.torch, self.disturbance = torch, disturbance
        q, k, v = torch_qkv("normal", "bf16", 0, heads=HEADS, query_len=ROWS, head_dim=DIM)
        self.rank = cuda_ring.RankTensors(torch, q, k, v, family="sm80")
        self.disturbed = cuda_ring.Disturbed(disturbance.delay, disturbance.poison)
        self.ring = cuda_ring.SelfRing(RANKS, ops=self.disturbed.ops)
        self.user = torch.cuda.Stream()
        self.outputs = [self.rank.y, self.rank.lse]

    def run(self, dropped=-1):
        torch, disturbance = self.torch, self.disturbance
        for x in (*self.outputs, self.rank.buffers, self.rank.state):
            x.fill_(float("nan"))
        torch.cuda.synchronize()
        self.disturbed.reset(dropped)
        disturbance.before_receive = {self.ring.endpoint.ring_stream: poison_next(self.rank)}
        disturbance.begin()
        disturbance.gate(self.user.cuda_stream)
        with torch.cuda.stream(self.user):
            self.rank.stage()
        program = self.disturbed.program
        call = self.rank.call(
            self.ring.endpoint, self.user.cuda_stream, self.ring.hops, program=program
        )
        cuda_ring.check(self.ring.lib.baracuda_ring_run(abi.ct.byref(call), 1))
        with torch.cuda.stream(self.user):  # the caller may free or reuse its scratch now
            self.rank.buffers.fill_(float("nan"))
        torch.cuda.synchronize()
        return [x.clone() for x in self.outputs]

    def close(self):
        self.ring.close()


class LocalRun:
    """A local ring of RANKS, on so many streams: each on its own, or all on one."""

    def __init__(self, torch, disturbance, streams=RANKS):
        self.torch, self.disturbance = torch, disturbance
        q, k, v = torch_qkv("normal", "bf16", 0, heads=HEADS, query_len=ROWS * RANKS, head_dim=DIM)
        shards = shards_of(q, k, v, RANKS, "contiguous")
        self.ranks = [cuda_ring.RankTensors(torch, *shard, family="sm80") for shard in shards]
        self.disturbed = cuda_ring.Disturbed(disturbance.delay, disturbance.poison)
        self.ops = self.disturbed.ops
        self.world = abi.LocalWorld(RANKS, self.ops)
        self.users = [torch.cuda.Stream() for _ in range(streams)] * (RANKS // streams)
        self.outputs = [x for rank in self.ranks for x in (rank.y, rank.lse)]

    def run(self, dropped=-1):
        torch, disturbance = self.torch, self.disturbance
        for rank in self.ranks:
            for x in (rank.y, rank.lse, rank.buffers, rank.state):
                x.fill_(float("nan"))
        torch.cuda.synchronize()
        self.disturbed.reset(dropped)
        disturbance.before_receive = {}
        disturbance.begin()
        for user in self.users:
            disturbance.gate(user.cuda_stream)
        calls = []
        for number, (rank, user) in enumerate(zip(self.ranks, self.users, strict=True)):
            disturbance.delay(user.cuda_stream)
            with torch.cuda.stream(user):
                rank.stage()
            hops = abi.plain_schedule(number, RANKS)
            endpoint, program = self.world.endpoints[number], self.disturbed.program
            calls.append(rank.call(endpoint, user.cuda_stream, hops, program=program))
            calls[-1].kept = hops
        lib = abi.library()
        cuda_ring.check(lib.baracuda_ring_run((abi.Call * RANKS)(*calls), RANKS))
        for rank, user in zip(self.ranks, self.users, strict=True):
            with torch.cuda.stream(user):
                rank.buffers.fill_(float("nan"))
        torch.cuda.synchronize()
        return [x.clone() for x in self.outputs]

    def close(self):
        self.world.close()


# Waits that others cover: with one thread rank 0 receives first, and the wait of its sender in the
# next exchange comes before that sender's own copy; and in a ring of three the last exchange of
# ranks 1 and 2 follows their senders' copies by way of the third.
COVERED = {SelfRun: set(), LocalRun: {4, 14, 16}}
WAITS = {SelfRun: 2 * (RANKS - 1), LocalRun: 4 * RANKS * (RANKS - 1)}


@pytest.mark.parametrize("kind", [SelfRun, LocalRun])
def test_delays_change_nothing_and_every_wait_is_needed(torch, kind):
    disturbance = Disturbance(torch)
    ring = kind(torch, disturbance)
    expected = ring.run()
    assert all(x.isfinite().all() for x in expected)
    assert ring.disturbed.waits == WAITS[kind]

    def differs(dropped):
        found = ring.run(dropped)
        return not all(same_bits(torch, a, b) for a, b in zip(expected, found, strict=True))

    disturbance.on = True
    assert not any(differs(-1) for _ in range(TRIALS))
    missed = [
        dropped
        for dropped in range(WAITS[kind])
        if dropped not in COVERED[kind] and not any(differs(dropped) for _ in range(MOST_TRIALS))
    ]
    assert not missed, f"nothing needs the waits {missed}"
    ring.close()


def test_delays_change_nothing_where_ranks_share_a_stream(torch):
    """Each wait covers another one; unit/test_ring_native.py leaves them out together."""
    disturbance = Disturbance(torch)
    ring = LocalRun(torch, disturbance, streams=1)
    expected = ring.run()
    assert all(x.isfinite().all() for x in expected)
    disturbance.on = True
    for _ in range(TRIALS):
        found = ring.run()
        assert all(same_bits(torch, a, b) for a, b in zip(expected, found, strict=True))
    ring.close()
