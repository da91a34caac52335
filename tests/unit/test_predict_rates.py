"""The rates of the performance model: from an evidence file or a card's measured figures."""

import math
from pathlib import Path

import pytest
from helpers.predict_cases import EVIDENCE, forward_row, problem, tax_row

import baracuda_kernels as bk
from baracuda_kernels import predict

ROOT = Path(__file__).parents[2]


def test_measured_rates_are_interpolated_by_length():
    rates = predict.measured_rates(EVIDENCE, "sm80", "bf16", 128)
    assert rates.tflops(1024) == pytest.approx(100) and rates.tflops(4096) == pytest.approx(250)
    assert rates.tflops(2048) == pytest.approx(175)
    assert rates.tflops(1) == pytest.approx(100) and rates.tflops(2**20) == pytest.approx(250)
    assert rates.tflops(2048, causal=True) == pytest.approx(140)
    # After the last length the loss of 25 % falls as 1/length.
    assert rates.tflops(8192, causal=True) == pytest.approx(250 / 1.125)
    assert rates.tflops(2**30, causal=True) == pytest.approx(250, rel=1e-5)
    # 2 ps a byte if it was measured, and 0 if the steps were not slower.
    assert rates.state_seconds_per_byte(1024) * 1e12 == pytest.approx(2)
    assert rates.state_seconds_per_byte(4096) == 0
    assert rates.state_seconds_per_byte(2048) * 1e12 == pytest.approx(1)
    assert all("Some Card" in source for source in rates.sources)


def test_the_state_costs_what_the_steps_take_beyond_their_flops():
    """Another library's single call has no effect, and idle SMs are not a cost of the state."""
    row = tax_row(1024, 100.0, 0.0, heads=4)
    on_32_of_132_sms = 4 * 4 * 8 * 1024**2 * 128 / 100e12 * 132 / 32
    row["ours"] = 1e3 * (on_32_of_132_sms + 14 * 4 * 1024 * 130 * 4 * 5e-12)
    rows = [r for r in EVIDENCE["rows"] if r["name"] == "forward"]
    for one_call in (1e-3, 1e3):
        row["peers"]["one_call"] = one_call
        rates = predict.measured_rates({"rows": [*rows, row]}, "sm80", "bf16", 128)
        assert rates.state_seconds_per_byte(1024) * 1e12 == pytest.approx(5)


@pytest.mark.parametrize(
    "family, dtype, head_dim, rows",
    [
        ("sm90a", "bf16", 64, 192),
        ("sm90a", "bf16", 256, 128),
        ("sm80", "bf16", 128, 128),
        ("sm80", "bf16", 192, 64),
        ("simt", "f32", 128, 64),
        ("simt", "f64", 256, 16),
    ],
)
def test_tiles_are_the_kernels_own(family, dtype, head_dim, rows):
    assert predict.default_rates(family, dtype, head_dim).tile_rows == rows


def test_what_was_not_measured_comes_from_the_log_and_is_said():
    rates = predict.measured_rates(EVIDENCE, "sm80", "bf16", 256)
    assert rates.full == predict.default_rates("sm80", "bf16", 256).full
    text = "; ".join(rates.sources)
    assert "none measured" in text and "kernel-log" in text and "no ring_tax rows" in text


def test_the_default_state_gives_the_logs_ring_tax():
    """docs/kernel-log/forward-sm80.md, D128, H 16, 8 chunks without a mask against one call."""
    rates = predict.default_rates("sm80", "bf16", 128)
    at_8192 = predict.ComputeRates.constant(rates.tflops(8192))
    # 128 SMs: the 128 tiles of chunk 1024 would leave some idle, in the one call as in the steps.
    m = predict.Machine(rates=at_8192, link_gbps=math.inf, latency_us=0, sms=128, sm_margin=0)
    for chunk, measured in ((1024, 1.21), (2048, 1.10), (4096, 1.06), (8192, 1.02)):
        p = problem(seq=8 * chunk, heads=16, kv_heads=16, causal=False)
        steps = predict.forecast(p, m).seconds
        one_call = p.flops_per_pair * chunk * p.seq / (rates.tflops(8192) * 1e12)
        assert steps / one_call == pytest.approx(measured, abs=0.03)


@pytest.mark.parametrize(
    "family, dtype, head_dim, full",
    [
        ("sm80", "bf16", 128, 392),
        ("sm80", "f16", 64, 353),
        ("sm80", "bf16", 80, 370),
        ("sm90a", "bf16", 256, 690),
        ("simt", "f32", 64, 30.7),
        ("simt", "f64", 300, 8.6),
        ("simt", "bf16", 40, 21.7),
    ],
)
def test_default_rates(family, dtype, head_dim, full):
    rates = predict.default_rates(family, dtype, head_dim)
    page = "performance" if family == "sm90a" else f"kernel-log/forward-{family}"
    assert rates.tflops(8192) == full and f"docs/{page}.md" in rates.sources[0]
    assert rates.tflops(8192, causal=True) < full * 1.01
    if head_dim not in (64, 128, 256) or dtype == "f16":
        assert any("stand in" in source for source in rates.sources)


def test_every_card_has_rates_of_every_point():
    for card in predict.cards():
        assert predict.find_card(card.arch) is card and card.sms > 0 and card.memory_gib > 0
        for name, family in card.families.items():
            for dtype, by_head_dim in family.tflops.items():
                for head_dim, points in by_head_dim.items():
                    rates = predict.default_rates(name, dtype, head_dim, card.arch)
                    assert rates.full == tuple((n, full) for n, full, _ in points)
                    assert rates.causal == tuple((n, causal) for n, _, causal in points)
                    assert rates.state == ((1.0, 1 / card.state_tbps),)
                    assert card.name in rates.sources[0] and family.source in rates.sources[0]
    assert len({card.arch for card in predict.cards()}) == len(predict.cards())


def test_a_rate_that_was_not_timed_loses_what_the_next_one_does():
    rates = predict.default_rates("sm80", "bf16", 64)
    assert rates.causal[0] == (512.0, 340 * 253 / 353) and rates.full[0] == (512.0, 253.0)


@pytest.mark.parametrize("arch", ["sm_80", "8.6", "sm_100", "sm_120", "host"])
def test_an_architecture_without_measured_rates_has_none(arch):
    name = "host" if arch == "host" else f"sm_{arch.removeprefix('sm_').replace('.', '')}"
    refusal = f"got {name}, must be .*sm_90.*--tflops"
    assert predict.find_card(arch) is None
    with pytest.raises(bk.UnsupportedError, match=refusal):
        predict.default_rates("sm80", "bf16", 128, arch)
    # Nor does an evidence file of such a card get another card's SMs, or its rates for missing rows.
    with pytest.raises(bk.UnsupportedError, match=refusal):
        predict.measured_rates(EVIDENCE, "sm80", "bf16", 128, arch)
    with pytest.raises(bk.UnsupportedError, match=refusal):
        predict.measured_rates(EVIDENCE, "sm80", "bf16", 256, arch, 108)
    own = predict.measured_rates(EVIDENCE, "sm80", "bf16", 128, arch, 132)
    assert own == predict.measured_rates(EVIDENCE, "sm80", "bf16", 128, "sm_90")
    assert all("H100" not in source for source in own.sources)


def test_where_the_state_stands_in_it_is_said():
    assert any("H100" in source for source in predict.ComputeRates.constant(300).sources)
    rows = [row for row in EVIDENCE["rows"] if row["name"] == "forward"]
    rates = predict.measured_rates({"rows": rows}, "sm80", "bf16", 128, "sm_80", 108)
    assert any("3.0 TB/s (H100)" in source for source in rates.sources)


def test_the_sms_of_the_files_card_are_minded():
    """On twice the SMs the same few tiles leave more idle, so less of the time is the state's."""
    rows = [row for row in EVIDENCE["rows"] if row["name"] == "forward"]
    rows.append(tax_row(1024, 100.0, 5.0, heads=4))
    of = ({"rows": rows}, "sm80", "bf16", 128, "sm_80")
    few, many = (predict.measured_rates(*of, sms).state_seconds_per_byte(1024) for sms in (64, 128))
    assert few > many


def test_bad_rates_are_typed_errors():
    for family, dtype in (("host", "f32"), ("sm80", "f32"), ("other", "bf16")):
        with pytest.raises(bk.UnsupportedError, match=family):
            predict.default_rates(family, dtype, 128)
    broken = {"rows": [{"name": "forward", "params": {"family": "sm80"}}, {"no": "name"}]}
    half = {"rows": [forward_row(1024, 100.0)]}
    del half["rows"][0]["ours"]
    for evidence in ({}, [], {"rows": 3}, broken, half, {"rows": [1]}):
        with pytest.raises(bk.InvalidProblemError):
            predict.measured_rates(evidence, "sm80", "bf16", 128)
    for curve in ((), ((2.0, 1.0), (1.0, 1.0)), ((1.0, -1.0),), ((0.0, 1.0),), ((1.0, math.nan),),
                  ((math.nan, 1.0),), ((1.0, 1.0), (math.inf, 1.0)), None, (1.0, 2.0),
                  (("a", 1.0),), ((1.0, "400"),)):  # fmt: skip
        with pytest.raises(bk.InvalidProblemError, match="full: got"):
            predict.ComputeRates(full=curve, causal=((1.0, 1.0),))
    for rows in (0, 1.5, "128"):
        with pytest.raises(bk.InvalidProblemError, match="tile_rows"):
            predict.ComputeRates(full=((1.0, 1.0),), causal=((1.0, 1.0),), tile_rows=rows)
    for tflops in ("400", None, [400.0]):
        with pytest.raises(bk.InvalidProblemError, match="tflops: got"):
            predict.ComputeRates.constant(tflops)
    for head_dim in (0, "128"):
        with pytest.raises(bk.InvalidProblemError, match="head_dim: got"):
            predict.default_rates("sm80", "bf16", head_dim)
    for sms in (0, "132"):
        with pytest.raises(bk.InvalidProblemError, match="sms: got"):
            predict.measured_rates(EVIDENCE, "sm80", "bf16", 128, sms=sms)
