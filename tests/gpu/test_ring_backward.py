"""Gradients of rings of 1 to 8 virtual ranks on one GPU, and their travelling sums."""

import random
import threading

import pytest
from helpers.cuda_gradients import drawn
from helpers.cuda_ring_gradients import GpuGradients, by_steps, same
from helpers.gradients import NAMES
from helpers.rings import case

import baracuda_kernels as bk
from baracuda_kernels.testing import (
    GRADIENT_TOLERANCES,
    assert_gradients,
    attention_backward,
    rms_over_rounding,
)

pytestmark = pytest.mark.gpu

LAYOUTS = ("contiguous", "zigzag", "striped")
KERNELS = [
    ("sm90a", "bf16", 128), ("sm90a", "f16", 64), ("sm90a-deterministic", "bf16", 128),
    ("sm90a-deterministic", "f16", 64), ("sm90a-deterministic", "bf16", 256),
    ("sm80", "bf16", 96), ("sm80", "f16", 64), ("sm80-deterministic", "bf16", 128),
    ("sm80-deterministic", "f16", 192),
    ("simt", "f32", 64), ("simt", "bf16", 72),
    ("simt", "f64", 33),
]  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_against_float64(torch, family, dtype, head_dim, ranks):
    # (rows, keys) of a rank: even, odd, unequal; the last leaves whole steps that see nothing.
    for rows, keys in ((64, 64), (77, 130), (5, 200)):
        x = drawn(torch, dtype, ranks, heads=4, kv_heads=2, query_len=rows * ranks,
                  key_len=keys * ranks, head_dim=head_dim, dlse=True)  # fmt: skip
        for is_causal in (False, True):
            exact = attention_backward(*x[:4], dlse=x.dlse, is_causal=is_causal)
            for layout in LAYOUTS if is_causal else LAYOUTS[:1]:
                with case(rows=rows, keys=keys, is_causal=is_causal, layout=layout):
                    got = GpuGradients(
                        torch, family, dtype, x, ranks, layout=layout, is_causal=is_causal
                    ).run()
                    assert_gradients(family, dtype, got, exact, summands=100.0)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_the_least_scratch_gives_the_same_bits(
    torch, family, dtype, head_dim, ranks
):
    """dq holds scratch until it is written: on ranks whose last live step is not the last step, too."""
    for rows, keys in ((96, 96), (77, 60), (200, 5)):
        x = drawn(torch, dtype, ranks, heads=8, kv_heads=1, query_len=rows * ranks,
                  key_len=keys * ranks, head_dim=head_dim, dlse=True)  # fmt: skip
        for is_causal in (False, True):
            for layout in LAYOUTS if is_causal else LAYOUTS[:1]:
                with case(rows=rows, keys=keys, is_causal=is_causal, layout=layout):
                    ring = GpuGradients(
                        torch, family, dtype, x, ranks, layout=layout, is_causal=is_causal
                    )
                    assert ring.plan.needs_kv_scratch_b == (family == "simt")
                    if family == "simt":
                        return
                    expected = [g.clone() for g in ring.run()]
                    for with_b in (True, False):
                        ring.save_memory(with_kv_scratch_b=with_b)
                        ring.poison()
                        assert same(torch, family, expected, ring.run()), with_b
                        assert not any(rank.overruns() for rank in ring.ranks), with_b


@pytest.mark.parametrize(("family", "dtype", "head_dim"), [
    ("sm90a-deterministic", "bf16", 128), ("sm90a-deterministic", "f16", 64),
    ("sm90a-deterministic", "bf16", 256), ("sm80-deterministic", "f16", 64),
    ("sm80-deterministic", "bf16", 192)])  # fmt: skip
def test_few_heads_keep_several_sums_of_dq_over_the_steps(torch, family, dtype, head_dim):
    for ranks, keys in ((2, 1100), (3, 1030)):
        x = drawn(torch, dtype, ranks, heads=2, query_len=1100 * ranks, key_len=keys * ranks,
                  head_dim=head_dim, dlse=True)  # fmt: skip
        for is_causal in (False, True):
            exact = attention_backward(*x[:4], dlse=x.dlse, is_causal=is_causal)
            for layout in LAYOUTS[:2] if is_causal else LAYOUTS[:1]:
                with case(ranks=ranks, is_causal=is_causal, layout=layout):
                    first, again = (
                        GpuGradients(
                            torch, family, dtype, x, ranks, layout=layout, is_causal=is_causal
                        ).run()
                        for _ in range(2)
                    )
                    assert_gradients(family, dtype, first, exact, summands=100.0)
                    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("family", "dtype"), [("sm90a", "bf16"), ("sm90a", "f16"),
                                               ("sm80", "bf16"), ("simt", "bf16")])
def test_16_bit_error_is_that_of_one_rank_at_every_world_size(torch, family, dtype, is_causal):
    x = drawn(torch, dtype, 5, heads=8, kv_heads=2, query_len=2048, head_dim=128)
    exact = attention_backward(*x[:4], is_causal=is_causal)
    ratios = {}
    for ranks in (1, 2, 4, 8):
        for layout in LAYOUTS if ranks > 1 else LAYOUTS[:1]:
            got = GpuGradients(
                torch, family, dtype, x, ranks, layout=layout, is_causal=is_causal
            ).run()
            ratios[ranks, layout] = [
                rms_over_rounding(g, e, dtype) for g, e in zip(got, exact, strict=True)
            ]
    print(family, dtype, is_causal, ratios)
    alone = ratios.pop((1, "contiguous"))
    limit = GRADIENT_TOLERANCES[family, dtype].over_rounding
    assert max(alone) <= limit
    for found in ratios.values():
        for one, ratio in zip(alone, found, strict=True):
            assert ratio <= 1.02 * one, ratios


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_steps_by_hand_give_the_bits_of_run(torch, family, dtype, head_dim, ranks):
    """The shares are added in the schedule's order, the rank's own one last, and rounded once."""
    x = drawn(torch, dtype, 7, heads=4, kv_heads=2, query_len=140 * ranks, head_dim=head_dim,
              dlse=True)  # fmt: skip
    for wide in (False, True):
        ring = GpuGradients(
            torch, family, dtype, x, ranks, layout="zigzag", is_causal=True, wide=wide
        )
        ring.run()
        for number, (rank, found) in enumerate(zip(ring.ranks, by_steps(torch, dtype, ring))):
            assert same(torch, family, [rank.dq], found[:1])
            for name, got, expected in zip(NAMES[1:], rank.gradients[1:], found[1:], strict=True):
                with case(origin=number, name=name, wide=wide):
                    assert torch.equal(got, expected)


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_a_local_ring_replays_from_a_graph(torch, family, dtype, head_dim, ranks):
    x = drawn(torch, dtype, 9, heads=4, kv_heads=2, query_len=96 * ranks, head_dim=head_dim)
    ring = GpuGradients(torch, family, dtype, x, ranks, layout="zigzag", is_causal=True)
    # The first run is captured: select has loaded all kernels.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ring.run()
    for _ in range(2):
        ring.run()
        eager = [g.clone() for g in ring.gathered()]
        ring.poison()
        graph.replay()
        torch.cuda.synchronize()
        assert same(torch, family, eager, ring.gathered())
        for rank in ring.ranks:
            rank.x.dy.mul_(2)  # new inputs in place


@pytest.mark.parametrize(("ranks", "least"), [(2, False), (5, False), (2, True), (5, True)])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS[:3])
def test_late_ranks_on_threads_give_the_same_bits(
    torch, family, dtype, head_dim, ranks, least
):
    """Each rank on a stream of its own that is held up at random; scratch is poisoned before a run and
    again as soon as the stream lets it."""
    x = drawn(torch, dtype, 2, heads=4, kv_heads=1, query_len=128 * ranks, head_dim=head_dim)
    ring = GpuGradients(torch, family, dtype, x, ranks, is_causal=True)
    together = [g.clone() for g in ring.run()]
    if least:
        ring.save_memory(with_kv_scratch_b=False)
    streams = [torch.cuda.Stream() for _ in range(ranks)]
    chance = random.Random(0)
    for _ in range(20):
        ring.poison()
        torch.cuda.synchronize()
        failures = []
        delays = [int(chance.choice((0, 0, 1, 4)) * chance.random() * 2_000_000)
                  for _ in range(ranks)]

        def drive(rank, failures=failures, delays=delays):
            try:
                torch.cuda.set_device(0)
                with torch.cuda.stream(streams[rank]):
                    torch.cuda._sleep(delays[rank])
                    ring.plan.run(bk.Stream(streams[rank]), ring.ring[rank], ring.args[rank])
                    for name, held in ring.ranks[rank].held.items():
                        if "scratch" in name:
                            held.view(torch.uint8).fill_(255)
            except bk.BaracudaError as error:
                failures.append(error)

        threads = [threading.Thread(target=drive, args=(rank,)) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torch.cuda.synchronize()
        assert not failures
        assert same(torch, family, together, ring.gathered())


@pytest.mark.device_memory
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_100_runs_give_the_same_bits_and_allocate_nothing(torch, family, dtype, head_dim):
    ranks = 4
    x = drawn(torch, dtype, 10, heads=4, kv_heads=2, query_len=256 * ranks, head_dim=head_dim)
    ring = GpuGradients(torch, family, dtype, x, ranks, layout="zigzag", is_causal=True)
    assert ring.plan.precision_guarantee.deterministic == (family not in ("sm80", "sm90a"))
    first = [g.clone() for g in ring.run()]
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    stream, free = torch.cuda.current_stream(), torch.cuda.mem_get_info()[0]
    for run in range(100):
        ring.poison()
        ring.ring.run_all(stream, ring.plan, ring.args)
        if run % 10 == 9:
            assert same(torch, family, first, ring.gathered()), run
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] >= free - (4 << 20)


def test_timelines_tell_of_both_exchanges_and_of_adding(torch):
    ranks = 4
    x = drawn(torch, "bf16", 11, heads=8, query_len=1024 * ranks, head_dim=64)
    ring = GpuGradients(torch, "simt", "bf16", x, ranks)
    timelines = [bk.RingTimeline() for _ in range(ranks)]
    for _ in range(2):
        ring.run(timeline=timelines)
    for timeline in timelines:
        assert all(step.compute > 0 and step.exchange > 0 for step in timeline.steps)
        spans = timeline.spans()
        # The steps, the additions to travelling and returned sums, and the work of the last
        # exchange.
        assert sum(span.name == "compute" for span in spans) == ranks + (ranks - 2) + 2
        assert max(s.end for s in spans) <= timeline.total + spans[0].begin + 0.003


@pytest.mark.parametrize("rows", [4096])
def test_scratch_does_not_grow_with_the_ring(torch, rows):
    stream = bk.Stream(torch.cuda.current_stream())
    desc = bk.RingAttentionDescriptor(1, 32, rows, rows, 128, element="BF16", num_kv_heads=8)
    plan = bk.RingAttentionBackwardPlan.select(desc, stream)
    chunk = 8 * rows * 128
    assert plan.kv_scratch_elements == 2 * chunk
    assert plan.kv_gradient_scratch_bytes == 4 * 2 * chunk * 4
    assert plan.scratch_bytes <= 32 * rows * (128 + 4) * 4 + 64
