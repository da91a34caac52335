"""The backward's program on simulated streams gives the same bits in any allowed order."""

import ctypes as ct

import numpy as np
import pytest
from helpers import backward_abi
from helpers import ring_abi as abi
from helpers.c_headers import structure
from helpers.gradients import NAMES, draw
from helpers.host_abi import PositionMap
from helpers.ring_abi import LocalWorld, last_failure
from helpers.ring_gradients import HostGradients

LAYOUTS = {"contiguous": 0, "zigzag": 1, "striped": 2}

RingProblem = structure("attention_backward_ring_problem")


def real_program():
    entry = abi.library().baracuda_attention_backward_ring_program
    entry.restype = ct.POINTER(abi.Program)
    return entry().contents


class Calls:
    """The C calls of a local ring, over the memory of a HostGradients.

    With `dq_holds_share` the memory of the sums' last chunk receives K and V instead of
    `kv_scratch_b`.
    """

    def __init__(self, ring, *, is_causal, dq_holds_share=False):
        self.ring, self.held, self.dq_holds_share = ring, [], dq_holds_share
        self.problems, self.payloads = [], []
        for rank in ring.ranks:
            x = rank.x
            steps = backward_abi.Steps(
                x, rank.y, rank.lse, kernel=0, kv_heads=x.k.shape[1], dq=rank.dq,
                scale=x.q.shape[-1] ** -0.5, causal=is_causal, q_map=PositionMap(),
                scratch=rank.held["scratch"],
            )  # fmt: skip
            steps.bind_keys(x.k, x.v, rank.dk, rank.dv, PositionMap())
            layout = LAYOUTS[ring.layout]
            problem = RingProblem(ct.sizeof(RingProblem), 0, layout, steps.params, dq_holds_share)
            self.problems.append(problem)
            self.payloads.append((abi.Payload * 2)(self.keys(rank), self.sums(rank)))
            self.held.append(steps)

    def keys(self, rank):
        received = [rank.held[name].ctypes.data for name in ("kv_scratch_b", "kv_scratch_a")]
        if self.dq_holds_share:
            scratch = rank.held["kv_gradient_scratch"]
            received[0] = scratch.ctypes.data + 3 * scratch.nbytes // 4
        k, v = rank.x.k, rank.x.v
        return abi.kv_payload(k.ctypes.data, v.ctypes.data, received, k.nbytes)

    def sums(self, rank):
        scratch, piece = rank.held["kv_gradient_scratch"], 4 * rank.x.k.size
        payload = abi.Payload(timing=abi.BEHIND, part=0, pieces=2)
        payload.piece_bytes[:2] = [piece, piece]
        payload.own[:2] = [scratch.ctypes.data, scratch.ctypes.data + piece]
        payload.buffers[:3] = [scratch.ctypes.data + i * scratch.nbytes // 4 for i in (1, 2, 3)]
        if self.dq_holds_share:
            payload.buffers[2] = rank.dq.ctypes.data
        return payload

    def call(self, rank, endpoint, stream, program):
        hops = abi.plain_schedule(rank, self.ring.world_size)
        self.held.append(hops)
        return abi.Call(
            struct_size=ct.sizeof(abi.Call), endpoint=ct.pointer(endpoint), stream=stream,
            hops=hops, program=ct.pointer(program), problem=ct.addressof(self.problems[rank]),
            payloads=self.payloads[rank], payload_count=2,
        )  # fmt: skip


_Work = ct.CFUNCTYPE(None, ct.c_void_p)


class Simulated:
    """One run on simulated streams; every scratch buffer is poisoned on them before and after it."""

    def __init__(self, ring, calls, *, dropped=(-1, 0), one_stream=False):
        abi.reset_simulator(*dropped)
        self.ring, self.calls, self.sim = ring, calls, abi.simulator()
        self.real, self.held, self.failed = real_program(), [], []
        self.world = LocalWorld(ring.world_size, self.sim.sim_stream_ops())
        self.ops = self.sim.sim_stream_ops().contents
        self.program = abi.Program.from_buffer_copy(self.real)
        self.program.launch = abi.ProgramFn(self.later("launch", self.real.launch))
        self.program.add = abi.ProgramFn(self.later("add", self.real.add))
        self.program.settle = abi.ProgramFn(self.later("settle", self.real.settle))
        self.program.grid = None
        self.streams = []
        for _ in range(1 if one_stream else ring.world_size):
            stream = ct.c_void_p()
            self.ops.stream_create(stream, 0)
            self.streams.append(stream.value)
        if one_stream:
            self.streams *= ring.world_size
        self.nothing = _Work(lambda _: None)

    def later(self, what, function):
        """Enqueues a function of the program. It reads its operands when the stream executes it."""

        def enqueue(problem, at):
            step = abi.Step.from_buffer_copy(at.contents)
            step.stream = None

            def run(_):
                if function(problem, ct.byref(step)) != abi.OK:
                    self.failed.append(last_failure())

            work = _Work(run)
            self.held += [step, work]
            self.sim.sim_enqueue(ct.c_void_p(at.contents.stream), what.encode(), None, work,
                                 self.nothing, None)  # fmt: skip
            return abi.OK

        return enqueue

    def poison(self):
        for rank, stream in zip(self.ring.ranks, self.streams, strict=True):
            for name in ("scratch", "kv_scratch_a", "kv_scratch_b", "kv_gradient_scratch"):
                target = rank.held[name]
                source = np.full(target.nbytes, 0xFF, np.uint8)
                self.held.append(source)
                self.ops.copy(target.ctypes.data, source.ctypes.data, source.nbytes, stream)

    def run(self, seed):
        for rank in self.ring.ranks:
            for name in NAMES:
                rank.held[name][...] = np.nan
        self.poison()
        ranks = range(self.ring.world_size)
        made = [self.calls.call(r, self.world.endpoints[r], self.streams[r], self.program)
                for r in ranks]  # fmt: skip
        status = self.world.lib.baracuda_ring_run((abi.Call * len(made))(*made), len(made))
        assert status == abi.OK, last_failure()
        self.poison()
        finished = self.sim.sim_run(seed) == 0
        assert not self.failed, self.failed
        self.world.close()
        return self.ring.gathered() if finished else None


def a_ring(ranks, layout="zigzag", is_causal=True, **options):
    x = draw("f32", ranks, heads=4, kv_heads=2, query_len=6 * ranks, key_len=5 * ranks, head_dim=8,
             dlse=True)  # fmt: skip
    ring = HostGradients(x, ranks, layout=layout, is_causal=is_causal)
    expected = [g.copy() for g in ring.run()]
    return ring, Calls(ring, is_causal=is_causal, **options), expected


@pytest.mark.parametrize("dq_holds_share", [False, True])
@pytest.mark.parametrize("one_stream", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_order_of_the_streams_gives_the_same_bits(ranks, layout, one_stream, dq_holds_share):
    ring, calls, expected = a_ring(ranks, layout, dq_holds_share=dq_holds_share)
    for seed in range(30):
        found = Simulated(ring, calls, one_stream=one_stream).run(seed)
        assert found is not None and all(map(np.array_equal, expected, found)), seed


def test_without_waits_an_order_shows_that_is_wrong():
    ring, calls, expected = a_ring(3)

    def is_wrong(seed):
        found = Simulated(ring, calls, dropped=(0, 1000)).run(seed)
        return found is None or not all(map(np.array_equal, expected, found))

    assert any(is_wrong(seed) for seed in range(20))


def test_what_the_program_refuses():
    ring, calls, expected = a_ring(3)
    world, program = LocalWorld(3), real_program()
    before = [g.copy() for g in ring.gathered()]
    changes = {
        "problem.struct_size: got 8": lambda p: setattr(p, "struct_size", 8),
        "call.struct_size: got 8": lambda p: setattr(p.call, "struct_size", 8),
        "step.struct_size: got 8": lambda p: setattr(p.call.step, "struct_size", 8),
        "layout": lambda p: setattr(p, "layout", 3),
        "device_maps": lambda p: setattr(p.call.step, "device_maps", 1),
        "query_len": lambda p: setattr(p.call.step, "query_len", -1),
        "world_size 3": lambda p: setattr(p.call.step, "key_len", 2**62),
        "dq_holds_share: got 1 for kernel 99": lambda p: (
            setattr(p, "kernel", 99), setattr(p, "dq_holds_share", 1)
        ),
    }  # fmt: skip
    for name, change in changes.items():
        good = RingProblem.from_buffer_copy(calls.problems[0])
        change(calls.problems[0])
        call = calls.call(0, world.endpoints[0], None, program)
        assert world.lib.baracuda_ring_run(ct.byref(call), 1) == abi.INVALID_ARGUMENT, name
        assert name in last_failure().message, (name, last_failure())
        ct.memmove(ct.byref(calls.problems[0]), ct.byref(good), ct.sizeof(good))
    assert all(map(np.array_equal, before, ring.gathered()))
    made = [calls.call(r, world.endpoints[r], None, program) for r in range(3)]
    assert world.lib.baracuda_ring_run((abi.Call * 3)(*made), 3) == abi.OK, last_failure()
    assert all(map(np.array_equal, expected, ring.gathered()))
    world.close()
