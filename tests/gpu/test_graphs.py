"""Runs as CUDA graphs, replayed on new inputs, give the bits of eager runs."""

import itertools

import pytest
from helpers import cuda_ring
from helpers import ring_abi as abi
from helpers.rings import descriptor, preference, rank_arrays, same_bits, shards_of

import baracuda_kernels as bk
from baracuda_kernels.testing import torch_qkv

pytestmark = pytest.mark.gpu

KERNELS = [("sm90a", "bf16", 128), ("sm80", "bf16", 64), ("simt", "f32", 64)]


class Ring:
    """A local ring of P ranks whose inputs can be drawn anew in place."""

    def __init__(self, torch, family, dtype, head_dim, ranks, *, staged=False, layout="zigzag",
                 rows=192):  # fmt: skip
        self.torch, self.ranks, self.staged, self.layout = torch, ranks, staged, layout
        self.shape = {"heads": 4, "kv_heads": 2, "query_len": rows * ranks, "head_dim": head_dim}
        self.dtype = dtype
        self.shards = self.draw(0)
        desc = descriptor(
            *self.shards[0][:2], dtype, is_causal=True,
            sequence_layout=bk.SequenceLayout.parse(layout),
        )  # fmt: skip
        stream = bk.Stream(torch.cuda.current_stream())
        self.plan = bk.RingAttentionPlan.select(stream, desc, preference(family, dtype))
        self.arrays = [rank_arrays(torch, self.plan, *s, ranks, staged=staged) for s in self.shards]
        self.ring = bk.LocalCommunicator.ring(ranks, device=0)
        self.args = [rank.args for rank in self.arrays]

    def draw(self, seed):
        q, k, v = torch_qkv("normal", self.dtype, seed, **self.shape)
        return shards_of(q, k, v, self.ranks, self.layout)

    def set_inputs(self, seed):
        for mine, new in zip(self.shards, self.draw(seed), strict=True):
            for x, fresh in zip(mine, new, strict=True):
                x.copy_(fresh)

    def run(self):
        if self.staged:  # in the graph too, since a run consumes staged K and V
            for (_, k, v), arrays in zip(self.shards, self.arrays, strict=True):
                arrays.held["kv_scratch_a"].copy_(self.torch.cat([k.flatten(), v.flatten()]))
        self.ring.run_all(self.torch.cuda.current_stream(), self.plan, self.args)

    def outputs(self):
        return [x.clone() for rank in self.arrays for x in (rank.y, rank.lse)]

    def clear(self):
        for rank in self.arrays:
            rank.y.zero_()
            rank.lse.zero_()


def capture(torch, run):
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_a_local_ring_replays_the_bits_of_an_eager_run(
    torch, family, dtype, head_dim, ranks, staged
):
    ring = Ring(torch, family, dtype, head_dim, ranks, staged=staged)
    graph = capture(torch, ring.run)
    for seed in (1, 2):
        ring.set_inputs(seed)
        ring.run()
        eager = ring.outputs()
        ring.clear()
        graph.replay()
        assert all(same_bits(torch, a, b) for a, b in zip(eager, ring.outputs(), strict=True))


def test_a_bare_stream_that_torch_is_capturing(torch):
    ring = Ring(torch, "sm80", "bf16", 64, 2)
    ring.run()
    eager = ring.outputs()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = bk.Stream(torch.cuda.current_stream().cuda_stream)
        ring.ring.run_all(stream, ring.plan, ring.args)
    assert stream.device == torch.cuda.current_device()
    ring.clear()
    graph.replay()
    assert all(same_bits(torch, a, b) for a, b in zip(eager, ring.outputs(), strict=True))


@pytest.mark.framework("cuda.bindings")
@pytest.mark.parametrize("mode", ["Global", "ThreadLocal", "Relaxed"])
def test_a_bare_stream_that_the_cuda_runtime_is_capturing(torch, mode):
    from cuda.bindings import runtime

    def call(function, *arguments):
        error, *values = function(*arguments)
        assert error == runtime.cudaError_t.cudaSuccess, (function.__name__, error)
        return values[0] if values else None

    ring = Ring(torch, "sm80", "bf16", 64, 2)
    ring.run()
    eager = ring.outputs()
    ring.clear()
    torch.cuda.synchronize()
    mode = getattr(runtime.cudaStreamCaptureMode, f"cudaStreamCaptureMode{mode}")
    handle = call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
    call(runtime.cudaStreamBeginCapture, handle, mode)
    try:
        stream = bk.Stream(int(handle))
        ring.ring.run_all(stream, ring.plan, ring.args)
    finally:  # otherwise no later test could allocate
        graph = call(runtime.cudaStreamEndCapture, handle)
    assert stream.device == torch.cuda.current_device()
    executable = call(runtime.cudaGraphInstantiate, graph, 0)
    call(runtime.cudaGraphLaunch, executable, handle)
    stream.synchronize()
    assert all(same_bits(torch, a, b) for a, b in zip(eager, ring.outputs(), strict=True))
    call(runtime.cudaGraphExecDestroy, executable)
    call(runtime.cudaGraphDestroy, graph)
    call(runtime.cudaStreamDestroy, handle)


def test_a_run_over_nccl_replays(torch):
    """NCCL's kernels in the graph: a rank that sends to itself in every step."""
    ranks = 4
    q, k, v = torch_qkv("normal", "bf16", 0, heads=4, query_len=256, head_dim=128)
    rank = cuda_ring.RankTensors(torch, q, k, v, family="sm80")
    ring = cuda_ring.SelfRing(ranks)

    def run():
        rank.stage()
        stream = torch.cuda.current_stream().cuda_stream
        call = rank.call(ring.endpoint, stream, ring.hops)
        cuda_ring.check(ring.lib.baracuda_ring_run(abi.ct.byref(call), 1))

    graph = capture(torch, run)
    for seed in (1, 2):
        fresh = torch_qkv("normal", "bf16", seed, heads=4, query_len=256, head_dim=128)
        rank.q.copy_(fresh[0])
        rank.kv.copy_(torch.stack(fresh[1:]))
        run()
        eager = rank.y.clone(), rank.lse.clone()
        rank.y.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(torch, rank.y, eager[0]) and same_bits(torch, rank.lse, eager[1])
    del graph  # NCCL ends a communicator only when no graph has its work
    ring.close()


def test_one_rank_of_a_communicator_replays(torch):
    q, k, v = torch_qkv("normal", "bf16", 0, heads=2, query_len=256, head_dim=64)
    stream = bk.Stream(torch.cuda.current_stream())
    plan = bk.RingAttentionPlan.select(stream, descriptor(q, k, "bf16"))
    arrays = rank_arrays(torch, plan, q, k, v, 1)
    with bk.Communicator.new_single_gpu(0) as comm:

        def run():
            plan.run(torch.cuda.current_stream(), comm, arrays.args)

        graph = capture(torch, run)
        expected = arrays.y.clone()
        arrays.y.zero_()
        graph.replay()
        assert same_bits(torch, arrays.y, expected)
        del graph


def test_a_timeline_is_refused_under_capture(torch):
    ring = Ring(torch, "sm80", "bf16", 64, 2)
    timelines = [bk.RingTimeline() for _ in range(2)]
    ring.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream()
        with pytest.raises(bk.InvalidProblemError, match="timeline: got one for a captured stream"):
            ring.ring.run_all(stream, ring.plan, ring.args, timeline=timelines)
        ring.run()  # the capture goes on
    graph.replay()
    torch.cuda.synchronize()


def test_a_timeline_agrees_with_the_clock(torch):
    """Compute and exposed communication add up to what other events measure around the run."""
    ring = Ring(torch, "sm80", "bf16", 128, 4, rows=4096)
    timelines = [bk.RingTimeline() for _ in range(4)]
    plain = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    for _ in range(3):
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000_000)  # so that the whole run is enqueued before it starts
        plain[0].record()
        ring.ring.run_all(
            torch.cuda.current_stream(), ring.plan, ring.args, timeline=timelines
        )
        plain[1].record()
        torch.cuda.synchronize()
    wall = plain[0].elapsed_time(plain[1])
    # The ranks take turns on one stream.
    assert sum(t.compute + t.exposed for t in timelines) == pytest.approx(wall, rel=0.1)
    assert all(timeline.total <= wall for timeline in timelines)


def test_spans_of_all_ranks_lie_on_one_clock(torch):
    """Ranks run one after the other; each exchange is concurrent, and ends before its waiter."""
    ring = Ring(torch, "sm80", "bf16", 128, 4, rows=4096)
    timelines = [bk.RingTimeline() for _ in range(4)]
    for _ in range(2):
        torch.cuda._sleep(20_000_000)
        stream = torch.cuda.current_stream()
        ring.ring.run_all(stream, ring.plan, ring.args, timeline=timelines)
    lanes = [timeline.spans(timelines[2]) for timeline in timelines]  # earlier ones are negative
    kernels = [
        next(span for span in spans if span.name == "compute" and span.step == step)
        for step in range(4)
        for spans in lanes
    ]
    resolution = 0.002
    assert lanes[0][0].begin < 0 and kernels[0].begin < 0 < kernels[-1].begin
    assert all(b.begin >= a.end - resolution for a, b in itertools.pairwise(kernels))
    for timeline, spans in zip(timelines, lanes, strict=True):
        exchanges = [span for span in spans if span.name == "exchange"]
        assert len(exchanges) == 3
        for step, exchange in enumerate(exchanges):
            (reader,) = (s for s in spans if s[:2] == (step + 1, "compute"))
            assert exchange.end <= reader.begin + resolution
        for step in timeline.steps:
            (kernel,) = (s for s in spans if s[:2] == (step.step, "compute"))
            assert kernel.end - kernel.begin == pytest.approx(step.compute, abs=resolution)
    # Concurrent with the kernels of the first step: it begins before all of them have ended.
    assert min(spans[1].begin for spans in lanes) < kernels[3].begin
