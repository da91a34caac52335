"""What each kernel family takes, at the edges of what it can count and scale: one rule, in C."""

import pytest

import baracuda_kernels as bk
from baracuda_kernels.ops.attention import _families

FAMILIES = {family.name: family for family in _families.FAMILIES}
LARGEST = 3.4028234663852886e38  # of float32
LOG2_E = 1.4426950408889634
MOST_TILES = 2**31 - 2**12


def refusal(family, **fields):
    good = {"batch_size": 1, "num_heads": 1, "query_len": 8, "key_len": 8, "head_dim": 64,
            "element": "BF16"}  # fmt: skip
    descriptor = bk.FlashSdpaDescriptor(**{**good, **fields})
    return _families._refusal(FAMILIES[family].kernel, descriptor)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_a_plain_problem(family):
    assert refusal(family) == ""


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("sm90a", {"element": "F32"}, "element: got F32, must be one of F16, BF16"),
        ("sm90a", {"element": "F32", "head_dim": 80}, "element: got F32, must be one of F16, BF16"),
        ("sm90a", {"head_dim": 96}, "head_dim: got 96, must be one of 64, 128, 256"),
        ("sm80", {"head_dim": 80}, "head_dim: got 80, must be one of 64, 96, 128, 192, 256"),
        ("simt", {"head_dim": 257}, "head_dim: got 257, must be 1 to 256"),
        ("host", {"head_dim": 0}, "head_dim: got 0, must be 1 to 1024"),
        ("sm80", {"scale": 0.0}, "scale: got 0.0, must be > 0"),
        ("sm90a", {"scale": -0.1}, "scale: got -0.1, must be > 0"),
        ("sm90a", {"scale": 1e-40}, "scale: got 1e-40, must be in the range of float32"),
        ("sm80", {"scale": 1e39}, "scale: got 1e+39, must be in the range of float32"),
        ("host", {"scale": 1e39}, "scale: got 1e+39, must be in the range of float32"),
        ("simt", {"scale": -1e300}, "scale: got -1e+300, must be in the range of float32"),
        (
            "host",
            {"scale": 1.5e308, "element": "F64"},
            "scale: got 1.5e+308, must be in the range of float64",
        ),
        ("sm90a", {"query_len": 2**30 + 1}, f"query_len: got {2**30 + 1}, must be at most 2**30 in one step"),
        ("sm90a", {"key_len": 2**30 + 1}, f"key_len: got {2**30 + 1}, must be at most 2**30 in one step"),
        ("sm80", {"key_len": 2**30 + 1}, f"key_len: got {2**30 + 1}, must be at most 2**30 in one step"),
        (
            "sm90a",
            {"batch_size": 2**22, "query_len": 2**18},
            f"batch, heads, query_len: got {2**22 * 4097} query tiles, must be at most {2**31 - 4096}",
        ),
        (
            "sm90a",
            {"batch_size": 2**45, "num_heads": 2**45, "query_len": 0, "key_len": 0},
            f"batch, heads, query_len: got {2**63 - 1} query tiles, must be at most {2**31 - 4096}",
        ),
    ],
    ids=str,
)
def test_reasons(family, fields, reason):
    assert refusal(family, **fields) == reason


@pytest.mark.parametrize("family", ["sm80", "sm90a"])
def test_a_scale_serves_while_it_is_a_normal_float32_times_log2_e(family):
    smallest = 2.0**-126 / LOG2_E
    for served in (smallest * 1.001, LARGEST / LOG2_E * 0.999):
        assert refusal(family, scale=served) == ""
    for beyond in (smallest * 0.999, LARGEST / LOG2_E * 1.001):
        assert "must be in the range of float32" in refusal(family, scale=beyond)


@pytest.mark.parametrize("family", ["host", "simt"])
def test_any_scale_serves_while_it_is_a_float_times_log2_e(family):
    for scale in (0.0, 1e-300, -1e-40, 2.3e38, -2.3e38):
        assert refusal(family, scale=scale) == ""
    assert "must be in the range of float32" in refusal(family, scale=2.4e38)
    for scale in (1e-320, -1.2e308, 1e39):
        assert refusal(family, scale=scale, element="F64") == ""
    assert "must be in the range of float64" in refusal(family, scale=-1.3e308, element="F64")


def test_a_huge_scale_is_refused_by_plans_and_explained():
    d = bk.FlashSdpaDescriptor(1, 1, 8, 8, 64, 1e39)
    with pytest.raises(bk.UnsupportedError, match=r"scale: got 1e\+39, must be in the range"):
        bk.FlashSdpaPlan.select(d, bk.Stream.host())
    reasons = [c.reason for c in bk.registry.explain(d, "host").candidates if c.family == "host"]
    assert reasons == ["scale: got 1e+39, must be in the range of float32"]


def test_sm90a_counts_tiles_of_all_heads_in_32_bits():
    most = MOST_TILES // 4097  # heads of 2**18 rows
    assert refusal("sm90a", num_heads=most, query_len=2**18) == ""
    assert "query tiles, must be at most" in refusal("sm90a", num_heads=most + 1, query_len=2**18)
    assert refusal("sm90a", num_heads=MOST_TILES, query_len=1) == ""
    assert "query tiles, must be at most" in refusal("sm90a", num_heads=MOST_TILES + 1, query_len=1)
    for family in ("sm80", "simt", "host"):
        assert refusal(family, num_heads=MOST_TILES + 1, query_len=1) == ""


def test_only_sm90a_counts_query_rows_in_32_bits():
    for family in ("sm80", "simt", "host"):
        assert refusal(family, query_len=2**30 + 1) == ""
