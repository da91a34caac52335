"""Predictions: pairs against brute force, memory, and limits of the model."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.predict_cases import machine, problem
from hypothesis import given
from hypothesis import strategies as st

import baracuda_kernels as bk
from baracuda_kernels import positions, predict

LAYOUTS = ("contiguous", "zigzag", "striped")
layouts = st.sampled_from(LAYOUTS)


def mask(layout, length, ranks, rank, origin):
    rows = positions(length, rank, ranks, layout)[:, None]
    return positions(length, origin, ranks, layout)[None, :] <= rows


# --- counting -----------------------------------------------------------------------------------


@given(layout=layouts, ranks=st.integers(1, 7), length=st.integers(0, 11))
def test_pairs_are_those_of_the_positions(layout, ranks, length):
    rank, origin = np.divmod(np.arange(ranks * ranks), ranks)
    counted = predict.visible_pairs(length, rank, origin, ranks, layout)
    for r, o, total, full, live in zip(
        rank, origin, counted.total, counted.full, counted.live_rows, strict=True
    ):
        seen = mask(layout, length, ranks, r, o)
        assert total == seen.sum()
        assert live == (seen.any(axis=1).sum() if length else 0)
        assert 0 <= full <= total
        if seen.size and seen.all():
            assert full == seen.size
    one = predict.visible_pairs(length, 0, 0, ranks, layout)
    assert one.total == counted.total[0]


@given(layout=layouts, ranks=st.integers(1, 40), length=st.integers(0, 2**20))
def test_all_chunk_pairs_together_are_the_triangle(layout, ranks, length):
    rank, origin = np.divmod(np.arange(ranks * ranks), ranks)
    total = int(predict.visible_pairs(length, rank, origin, ranks, layout).total.sum())
    seq = ranks * length
    assert total == seq * (seq + 1) // 2


def test_pairs_stay_exact_at_the_largest_lengths():
    length = 2**30
    assert predict.visible_pairs(length, 0, 0, 1).total == length * (length + 1) // 2
    everything = predict.visible_pairs(length, 0, 0, 1, causal=False)
    assert everything.total == everything.full == length**2


def test_full_blocks_are_told_from_cut_ones():
    length, ranks = 8, 4
    later = predict.visible_pairs(length, 3, 1, ranks)
    assert (later.full, later.cut) == (64, 0)
    own = predict.visible_pairs(length, 2, 2, ranks)
    assert (own.full, own.cut) == (0, 36)
    # Off the diagonal, zigzag has only uncut blocks: half of the keys, or half of the rows.
    for origin in (0, 3):
        pairs = predict.visible_pairs(length, 1, origin, ranks, "zigzag")
        assert (pairs.full, pairs.cut) == (32, 0)
    assert predict.visible_pairs(length, 1, 3, ranks, "zigzag").live_rows == 4
    striped = [int(predict.visible_pairs(length, 1, o, ranks, "striped").cut) for o in range(4)]
    assert striped == [36, 36, 28, 28]


@pytest.mark.parametrize(
    "arguments",
    [(-1, 0, 0, 2), (4, 2, 0, 2), (4, 0, -1, 2), (4, 0, 0, 0), (2**30, 0, 0, 2)],
)
def test_bad_counts_are_typed_errors(arguments):
    with pytest.raises(bk.InvalidProblemError):
        predict.visible_pairs(*arguments)
    with pytest.raises(bk.InvalidProblemError):
        predict.visible_pairs(4, 0, 0, 2, "spiral")


# --- memory and bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_sizes_are_those_of_the_plan(dtype):
    p = problem(seq=64, ranks=4, heads=4, kv_heads=2, head_dim=16, batch=3, dtype=dtype)
    descriptor = bk.RingAttentionDescriptor(
        3, 4, 16, 16, 16, element=bk.ElementKind.parse(dtype), num_kv_heads=2
    )
    plan = bk.RingAttentionPlan.select(bk.Stream.host(), descriptor)
    assert p.kv_scratch_elements == plan.kv_scratch_elements
    assert p.state_bytes == plan.accumulator_scratch_bytes
    assert p.bytes_per_hop == 2 * 3 * 2 * 16 * 16 * p.itemsize
    assert p.bytes_sent == 3 * p.bytes_per_hop


@pytest.mark.parametrize("ranks, staged, in_place", [(1, 1, 0), (2, 2, 1), (3, 2, 2), (8, 2, 2)])
def test_scratch_is_what_the_world_size_needs(ranks, staged, in_place):
    p = problem(seq=1024 * ranks, ranks=ranks)
    for flag, buffers, kv in ((False, staged, 0), (True, in_place, 1)):
        m = predict.rank_memory(p, in_place=flag)
        assert m.scratch_a + m.scratch_b == buffers * p.bytes_per_hop
        assert m.kv == kv * p.bytes_per_hop
        assert m.accumulator == (p.state_bytes if ranks > 1 else 0)
        assert m.q == m.y == 32 * 1024 * 128 * 2 and m.lse == 32 * 1024 * 4
        assert m.total == m.q + m.y + m.lse + m.kv + m.scratch_a + m.scratch_b + m.accumulator


# --- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("causal", [False, True])
def test_one_rank_has_no_communication(layout, causal):
    p = problem(ranks=1, causal=causal)
    f = predict.forecast(p, predict.Machine(rates=machine().rates, link_gbps=1e-3), layout)
    assert f.exposed == 0 and len(f.steps) == 1 and f.steps[0].exchange == 0
    assert f.efficiency == f.balance == 1
    assert f.tflops_per_gpu == pytest.approx(400)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("causal", [False, True])
def test_an_infinite_link_exposes_nothing(layout, causal):
    p = problem(causal=causal)
    f = predict.forecast(p, machine(link_gbps=math.inf), layout)
    assert f.exposed == 0 and f.seconds == f.compute
    # With constant rates and no state, efficiency depends on balance alone.
    assert f.efficiency == pytest.approx(1 / f.balance)
    if not causal:
        assert f.efficiency == pytest.approx(1)


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
def test_balance(ranks):
    p = problem(ranks=ranks, seq=ranks * 4096)
    balance = {x: predict.forecast(p, machine(), x).balance for x in LAYOUTS}
    assert balance["contiguous"] == pytest.approx(2 - 1 / ranks, rel=1e-3)
    assert balance["zigzag"] == pytest.approx(1, rel=1e-3)
    assert balance["striped"] == pytest.approx(1, rel=1e-3)
    even = predict.forecast(dataclasses.replace(p, causal=False), machine())
    assert even.balance == pytest.approx(1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_seconds_are_the_counted_pairs_over_the_rate(layout):
    p = problem(seq=12 * 5, ranks=5, heads=132, kv_heads=132)
    seconds = predict.compute_seconds(p, machine(tflops=2.0), layout)
    for step in range(5):
        for rank in range(5):
            pairs = mask(layout, 12, 5, rank, (rank - step) % 5).sum()
            assert seconds[step, rank] == pytest.approx(4 * 132 * 128 * pairs / 2e12)


def test_full_and_cut_blocks_have_their_own_rates():
    rates = dataclasses.replace(predict.ComputeRates.constant(200, 100), state=((1.0, 0.0),))
    m = predict.Machine(rates=rates, link_gbps=400, sm_margin=0)
    p = problem()
    seconds = predict.compute_seconds(p, m)
    flops = p.flops_per_pair
    assert seconds[1, 7] == pytest.approx(flops * p.chunk**2 / 200e12)
    assert seconds[0, 7] == pytest.approx(flops * p.chunk * (p.chunk + 1) / 2 / 100e12)
    assert seconds[1, 0] == 0


def test_state_is_moved_by_live_steps_alone():
    p = problem(seq=4 * 4096, ranks=4)
    bare, with_state = machine(), machine(state=1.0)
    once = p.state_bytes * 1e-12
    moved = {
        x: (predict.compute_seconds(p, with_state, x) - predict.compute_seconds(p, bare, x)) / once
        for x in LAYOUTS
    }
    # Steps down, ranks across: rank 0 of a contiguous causal ring has one live step.
    expected = [[0, 1, 1, 1], [0, 1, 2, 2], [0, 0, 1, 2], [0, 0, 0, 1]]
    assert np.allclose(moved["contiguous"], expected)
    # Before the last step, rows that see nothing keep theirs where it is: half of them in zigzag's
    # steps with a later rank's chunk, one of 4096 in striped's.
    assert np.allclose(moved["zigzag"], [[1] * 4, [1, 2, 2, 2], [1, 1, 2, 2], [1] * 4])
    assert np.allclose(moved["striped"], [[1] * 4, [2] * 4, [2] * 4, [1] * 4], atol=1e-3)


def test_the_margin_slows_the_steps_with_an_exchange():
    p = problem(causal=False)
    plain = predict.compute_seconds(p, machine())
    with_margin = predict.compute_seconds(p, machine(sm_margin=33))
    assert np.allclose(with_margin[:-1], plain[:-1] / 0.75)
    assert np.allclose(with_margin[-1], plain[-1])


def test_sms_without_a_tile_are_not_counted():
    p = problem(seq=256 * 8, heads=8, kv_heads=8, causal=False)  # 16 tiles a rank
    seconds = predict.compute_seconds(p, machine(sm_margin=8))
    assert np.allclose(seconds, 4 * 8 * 128 * 256**2 / 400e12 * 132 / 16)


def test_exposed_is_what_the_exchange_lasts_longer():
    p = problem(causal=False)
    m = machine(link_gbps=1.0, latency_us=7.0)
    hop = 7e-6 + p.bytes_per_hop * 8 / 1e9
    f = predict.forecast(p, m)
    compute = p.flops_per_pair * p.chunk**2 / 400e12
    assert predict.exchange_seconds(p, m) == pytest.approx(hop)
    assert f.exposed == pytest.approx(7 * (hop - compute))
    assert f.seconds == pytest.approx(7 * hop + compute)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_link_and_less_latency_never_hurt(layout):
    p = problem(seq=2**15)
    by_link = [predict.forecast(p, machine(link_gbps=g), layout) for g in (1, 10, 100, 1e3, 1e5)]
    by_latency = [predict.forecast(p, machine(latency_us=u), layout) for u in (1e4, 1e3, 10, 0)]
    for forecasts in (by_link, by_latency):
        seconds = [f.seconds for f in forecasts]
        exposed = [f.exposed for f in forecasts]
        assert seconds == sorted(seconds, reverse=True) and seconds[0] > seconds[-1]
        assert exposed == sorted(exposed, reverse=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_longer_sequences_are_more_efficient(layout):
    m = predict.Machine(rates=predict.default_rates("sm80", "bf16", 128), link_gbps=100)
    found = [predict.forecast(problem(seq=2**n), m, layout) for n in range(13, 22)]
    efficiency = [f.efficiency for f in found]
    assert efficiency == sorted(efficiency) and efficiency[-1] <= 1
    exposed = [f.exposed / f.seconds for f in found]
    assert exposed == sorted(exposed, reverse=True)


# --- the smallest chunk -------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("latency_us", [0.0, 50.0])
def test_the_closed_form_is_the_models_own_answer(causal, layout, latency_us):
    p = problem(heads=64, causal=causal)
    m = machine(latency_us=latency_us, sm_margin=12)
    closed = predict.hiding_chunk(p, m, causal=causal)
    found = predict.smallest_hiding_chunk(p, m, layout)
    if causal:  # L(L+1)/2, or L(L-1)/2 on some striped ranks, but the slowest counts: within a row
        assert abs(found - closed) <= 1.5
    else:
        assert found == math.ceil(closed)
    for chunk, hidden in ((found, True), (found - 1, False)):
        at = dataclasses.replace(p, seq=8 * chunk)
        assert (predict.forecast(at, m, layout).exposed == 0) is hidden


def test_the_closed_form_by_hand():
    # size·R·Hkv / (2·H·W): 2 · 400e12 · 8 / (2 · 64 · 50e9)
    p = problem(heads=64, causal=False)
    assert predict.hiding_chunk(p, machine()) == pytest.approx(1000)
    assert predict.hiding_chunk(p, machine(), causal=True) == pytest.approx(2000)


def test_no_chunk_hides_what_is_too_slow():
    p = problem(causal=False)
    assert predict.smallest_hiding_chunk(p, machine(link_gbps=1e-6), "contiguous") is None
    alone = problem(ranks=1)
    assert predict.smallest_hiding_chunk(alone, machine(link_gbps=1e-6), "contiguous") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0},
        {"seq": 2**30 + 8},
        {"seq": 1.5},
        {"ranks": 0},
        {"ranks": 8192},
        {"ranks": 7},
        {"heads": 0},
        {"kv_heads": 5},
        {"dtype": "s8"},
        {"batch": -1},
    ],
)
def test_bad_problems_are_typed_errors(change):
    with pytest.raises(bk.InvalidProblemError):
        problem(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"link_gbps": 0},
        {"link_gbps": math.nan},
        {"latency_us": -1},
        {"latency_us": math.inf},
        {"sm_margin": 132},
        {"sm_margin": -1},
        {"sms": 0},
        {"memory_gib": 0},
        {"exchange": ["nccl"]},
        {"rates": None},
        {"rates": 400.0},
        {"backward_rates": 400.0},
    ],
)
def test_bad_machines_are_typed_errors(change):
    with pytest.raises(bk.InvalidProblemError, match=f"^{next(iter(change))}: got"):
        dataclasses.replace(machine(), **change)
