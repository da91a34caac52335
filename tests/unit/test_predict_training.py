"""Predictions of a backward and of a training step: bytes, memory, time, measured rates."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.predict_cases import backward_row, machine, problem

import baracuda_kernels as bk
from baracuda_kernels import predict, registry

ROOT = Path(__file__).parents[2]
needs_cuda_build = pytest.mark.skipif(
    not bk._build_info()["cuda_built"], reason="capability: CUDA kernels in the build"
)
LAYOUTS = ("contiguous", "zigzag", "striped")
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def trained(tflops=400.0, backward=200.0, **changes):
    m = machine(tflops=tflops, **changes)
    rates = dataclasses.replace(predict.ComputeRates.constant(backward), state=m.rates.state)
    return dataclasses.replace(m, backward_rates=rates)


# --- bytes and memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_sizes_are_those_of_the_plan(dtype):
    p = problem(seq=64, ranks=4, heads=4, kv_heads=2, head_dim=16, batch=3, dtype=dtype)
    descriptor = bk.RingAttentionDescriptor(
        3, 4, 16, 16, 16, element=bk.ElementKind.parse(dtype), num_kv_heads=2
    )
    plan = bk.RingAttentionBackwardPlan.select(bk.Stream.host(), descriptor)
    m = predict.training_memory(p)
    assert m.sums == plan.kv_gradient_scratch_bytes and m.scratch == plan.scratch_bytes
    assert m.scratch_a == m.scratch_b == plan.kv_scratch_elements * p.itemsize
    rows, keys = 3 * 4 * 16 * 16 * p.itemsize, 3 * 2 * 16 * 16 * p.itemsize
    lse = predict.rank_memory(p, in_place=True).lse
    assert (m.kept, m.gradients) == (2 * rows + 2 * keys + lse, 2 * rows + 2 * keys)
    assert m.total == m.kept + m.gradients + 2 * m.scratch_a + m.sums + m.scratch
    assert predict.backward_scratch(p, "host") == plan.scratch_bytes
    alone = predict.training_memory(dataclasses.replace(p, ranks=1))
    assert alone.scratch_a == alone.scratch_b == alone.sums == 0
    # A ring of two receives one chunk of K and V.
    two = predict.training_memory(dataclasses.replace(p, ranks=2, seq=32))
    assert two.scratch_a == m.scratch_a and two.scratch_b == 0 and two.sums == m.sums


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_lse_is_of_the_type_that_the_backward_takes(dtype):
    p = problem(dtype=dtype)
    plan = bk.RingAttentionBackwardPlan.select(bk.Stream.host(), p.descriptor)
    size = plan.precision_guarantee.accumulator.itemsize
    assert predict.rank_memory(p, in_place=True).lse == 32 * p.chunk * size


SHAPES = (
    {}, {"head_dim": 64}, {"head_dim": 64, "seq": 8}, {"head_dim": 256}, {"kv_heads": 32, "seq": 8000},
    {"batch": 32, "heads": 16, "kv_heads": 16, "seq": 2400}, {"dtype": "f64"}, {"dtype": "f32"},
)  # fmt: skip


@needs_cuda_build
@pytest.mark.parametrize("deterministic", [None, True])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "host"])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_scratch_is_what_the_kernel_asks_for(changes, arch, deterministic):
    """A preference with the predicted bytes gets the same kernel; with one byte less, another."""
    p = problem(**{"seq": 8 * 2048, **changes})
    wish = bk.PlanPreference(deterministic=deterministic)
    family = registry.explain(p.descriptor, arch, wish, "BACKWARD").family
    nbytes = predict.backward_scratch(p, arch, wish)
    assert predict.training_memory(p, nbytes).scratch == nbytes >= p.state_bytes > 0
    for limit, taken in ((nbytes, True), (nbytes - 1, False)):
        limited = bk.PlanPreference(deterministic=deterministic, max_workspace_bytes=limit)
        found = registry.explain(p.descriptor, arch, limited, "BACKWARD").family
        assert (found == family) is taken


def test_a_scratch_that_is_no_size_is_refused():
    for wrong in (-1, "5", 2.0):
        with pytest.raises(bk.InvalidProblemError, match="scratch: got"):
            predict.training_memory(problem(), wrong)


def test_the_recommendation_asks_for_the_scratch_of_every_rank_count():
    p, asked = problem(seq=4096, ranks=8), []

    def scratch(one):
        asked.append(one.ranks)
        return 2**40 if one.ranks < 4 else 5

    result = predict.compare(p, trained(), ["zigzag"], training=True, scratch=scratch)
    assert set(asked) == {1, 2, 4, 8} and result.training.scratch == 5
    assert result.to_dict()["training_memory"]["scratch"] == 5
    assert result.recommendation.ranks in (4, 8)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_exchanges_are_the_rings(ranks):
    """Chunks travel during all steps but the last; sums from step 2 on, one exchange later."""
    p = problem(seq=1024 * ranks, ranks=ranks)
    sent = predict.backward_exchange_seconds(p, machine(link_gbps=8e-9))  # a byte a second
    chunk, sums = p.bytes_per_hop, 2 * 8 * 1024 * 128 * 4
    expected = [0] * (ranks + 1)
    for step in range(ranks - 1):
        expected[step] += chunk
        expected[step + 2] += sums
    assert sent == pytest.approx(expected)
    latency = predict.backward_exchange_seconds(p, machine(link_gbps=math.inf, latency_us=7.0))
    assert np.array_equal(latency > 0, np.array(expected) > 0)


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_seconds_are_the_counted_pairs_over_the_rate(layout):
    p = problem(seq=12 * 5, ranks=5, heads=132, kv_heads=132)
    seconds = predict.backward_compute_seconds(p, trained(backward=2.0), layout)
    for step in range(5):
        for rank in range(5):
            pairs = predict.visible_pairs(12, rank, (rank - step) % 5, 5, layout).total
            assert seconds[step, rank] == pytest.approx(10 * 132 * 128 * int(pairs) / 2e12)
    assert not seconds[5].any()  # additions are free here


def test_full_and_cut_blocks_have_their_own_rates():
    rates = dataclasses.replace(predict.ComputeRates.constant(200, 100), state=((1.0, 0.0),))
    m = dataclasses.replace(machine(), backward_rates=rates)
    p = problem()
    seconds, flops = predict.backward_compute_seconds(p, m), 2.5 * p.flops_per_pair
    assert seconds[1, 7] == pytest.approx(flops * p.chunk**2 / 200e12)
    assert seconds[0, 7] == pytest.approx(flops * p.chunk * (p.chunk + 1) / 2 / 100e12)


def test_shares_are_added_from_the_third_step_on_and_at_home():
    p = problem(seq=4 * 4096, ranks=4, causal=False)
    free, paid = (predict.backward_compute_seconds(p, trained(state=s)) for s in (0.0, 1.0))
    sums = 2 * 8 * 4096 * 128 * 4
    added = (paid - free)[:, 0] / (sums * 1e-12)
    # An addition reads a sum and a share and writes a sum; the last one writes 16 bits.
    assert added == pytest.approx([0, 0, 3, 3, 2.5])


def test_key_tiles_of_all_heads_of_a_group_are_one_block():
    p = problem(seq=256 * 8, heads=64, kv_heads=8, causal=False)  # 16 tiles a rank
    seconds = predict.backward_compute_seconds(p, trained())
    assert seconds[0, 0] == pytest.approx(10 * 64 * 128 * 256**2 / 200e12 * 132 / 16)


def test_the_margin_is_left_in_steps_that_exchange_something():
    p = problem(seq=2 * 2**16, ranks=2, causal=False)
    plain, left = (predict.backward_compute_seconds(p, trained(sm_margin=n)) for n in (0, 33))
    assert left[0] == pytest.approx(plain[0] / 0.75) and left[1] == pytest.approx(plain[1])
    longer = problem(seq=4 * 2**16, ranks=4, causal=False)
    plain, left = (predict.backward_compute_seconds(longer, trained(sm_margin=n)) for n in (0, 33))
    assert left[:4] == pytest.approx(plain[:4] / 0.75)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_rank_has_no_communication(layout):
    p = problem(ranks=1)
    m = dataclasses.replace(trained(link_gbps=1e-3))
    f = predict.training_forecast(p, m, layout)
    assert f.exposed == 0 and f.hidden and len(f.backward.steps) == 1
    assert f.efficiency == f.balance == 1
    assert f.backward.tflops_per_gpu == pytest.approx(200)
    # 2 parts at 400 and 5 at 200.
    assert f.tflops_per_gpu == pytest.approx(7 / (2 / 400 + 5 / 200))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_what_comes_home_is_never_hidden(ranks):
    p = problem(seq=ranks * 2**15, ranks=ranks, causal=False)
    m = trained(link_gbps=2900.0, latency_us=20.0)
    f = predict.backward_forecast(p, m)
    home = 20e-6 + 2 * 8 * 2**15 * 128 * 4 * 8 / 2900e9
    assert f.hidden and f.exposed == pytest.approx(home)
    assert f.seconds == pytest.approx(f.compute + home)
    both = predict.training_forecast(p, m)
    forward = predict.forecast(p, m)
    assert both.seconds == forward.seconds + f.seconds and both.exposed == f.exposed
    assert both.efficiency < 1 and both.balance == pytest.approx(1)


def test_slow_links_expose_both_ways():
    p = problem(seq=4 * 4096, ranks=4, causal=False)
    m = trained(link_gbps=1.0)
    f = predict.backward_forecast(p, m)
    compute = 2.5 * p.flops_per_pair * p.chunk**2 / 200e12
    chunk, sums = (x * 8e-9 for x in (p.bytes_per_hop, 2 * p.bytes_per_hop))
    assert not f.hidden
    assert f.exposed == pytest.approx(3 * chunk + 3 * sums - 4 * compute)


# --- the plan -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_smallest_chunk_hides_both_passes(layout, causal):
    p = problem(heads=16, kv_heads=16, causal=causal)
    m = trained(tflops=400, backward=400)
    found = predict.smallest_hiding_chunk(p, m, layout, training=True)
    for chunk, hidden in ((found, True), (found - 1, False)):
        at = dataclasses.replace(p, seq=8 * chunk)
        assert predict.training_forecast(at, m, layout).hidden is hidden
    # Three times the bytes of the forward's exchange for 2.5 times its flops. Contiguous and causal
    # it is the forward's first, diagonal step that is short.
    factor = 1.0 if causal and layout == "contiguous" else 1.2
    assert found == pytest.approx(factor * predict.smallest_hiding_chunk(p, m, layout), rel=0.01)


def test_a_plan_of_a_training_step():
    p, m = problem(seq=2**19, ranks=32), trained(link_gbps=2900.0)
    found = predict.compare(p, m, training=True)
    assert {f.problem.ranks for f in found.sweep} == {1, 2, 4, 8, 16, 32}
    advice = found.recommendation
    assert advice.layout is bk.SequenceLayout.ZIGZAG and "at the end" in advice.reason
    as_dict = found.to_dict()
    json.dumps(as_dict, allow_nan=False)
    assert as_dict["training"] and not predict.compare(p, m).to_dict()["training"]
    zigzag = as_dict["layouts"]["zigzag"]
    assert zigzag["seconds"] == zigzag["forward"]["seconds"] + zigzag["backward"]["seconds"]
    exchange = as_dict["backward_exchange"]
    assert exchange["bytes_sent_per_rank"] == 31 * 3 * p.bytes_per_hop
    assert len(exchange["seconds"]) == 33
    assert as_dict["training_memory"]["total"] == predict.training_memory(p).total


def test_memory_of_the_backward_is_minded():
    p = problem(seq=2**19, ranks=32)
    need = predict.training_memory(p).total / 2**30
    room = {f: predict.compare(p, trained(memory_gib=f * need), training=True) for f in (0.99, 1.01)}
    assert not room[0.99].recommendation.fits and room[1.01].recommendation.fits


def test_without_rates_of_a_backward_there_is_no_forecast():
    for call in (predict.training_forecast, predict.backward_forecast):
        with pytest.raises(bk.InvalidProblemError, match="got no backward_rates"):
            call(problem(), machine())
    with pytest.raises(bk.InvalidProblemError, match="got no backward_rates"):
        predict.compare(problem(), machine(), training=True)
    with pytest.raises(bk.InvalidProblemError, match="sequence_layout"):
        predict.backward_forecast(problem(), trained(), "spiral")


# --- rates, and what was measured ---------------------------------------------------------------


def test_measured_rates_are_those_of_the_fast_kernels():
    rows = [backward_row(1024, 100.0), backward_row(4096, 200.0),
            backward_row(4096, 999.0, guarantee="deterministic"),
            backward_row(4096, 150.0, causal=True)]  # fmt: skip
    of = ({"card": "Some Card", "rows": rows}, "sm80", "bf16", 128)
    rates = predict.measured_rates(*of, backward=True)
    assert rates.full == ((1024.0, pytest.approx(100)), (4096.0, pytest.approx(200)))
    assert rates.causal == ((4096.0, pytest.approx(150)),)
    assert rates.tile_rows == 128 and rates.sources == ("backward rows: Some Card, sm80 bf16 D 128",)
    other = predict.measured_rates(*of[:3], 256, backward=True)
    assert other.full == predict.default_rates("sm80", "bf16", 256, backward=True).full
    assert "backward rows: none measured for sm80 bf16 D 256" in other.sources


def test_default_rates_say_whose_they_are():
    rates = predict.default_rates("sm90a", "f16", 80, backward=True)
    assert any("gradients by sm90a" in source for source in rates.sources)
    assert any("bf16 D 128 stand in" in source for source in rates.sources)
    with pytest.raises(bk.UnsupportedError, match="gradients by the family simt with bf16"):
        predict.default_rates("simt", "bf16", 128, backward=True)
