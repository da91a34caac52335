"""`gradient_error` rows, over rings on the host."""

import numpy as np
import pytest
from helpers.gradients import NAMES, draw

import baracuda_kernels as bk
from benchmarks import gradient_error as module

SHAPE = {"family": "host", "dtype": "bf16", "heads": 4, "kv_heads": 2, "head_dim": 64, "chunk": 64}


def on_host(ranks):
    def ring(x, layout, causal):
        return bk.run_local_ring(
            x.q, x.k, x.v, ranks, dy=x.dy, is_causal=causal, sequence_layout=layout
        )[2:]  # fmt: skip

    return ring


def rounded_shares(x, layout, causal):
    """dk and dv of two ranks, off by about a 16-bit rounding more, as sums in 16 bits are."""
    whole = on_host(2)(x, layout, causal)
    noise = np.random.default_rng(0)
    steps = [noise.uniform(-1, 1, g.shape) * np.abs(g.astype(np.float64)) * 2.0**-7 for g in whole]
    worse = [(g.astype(np.float64) + s).astype(g.dtype) for g, s in zip(whole, steps, strict=True)]
    return [whole[0], *worse[1:]]


@pytest.mark.parametrize("ranks", [1, 3])
def test_rows_of_the_host_family(ranks):
    x = draw("bf16", 3, heads=4, kv_heads=2, query_len=64 * ranks, head_dim=64)
    rows = module.rows_of(x, ranks, {"local": on_host(ranks)}, on_host(1), **SHAPE)
    layouts = module.LAYOUTS if ranks > 1 else module.LAYOUTS[:1]
    names = ("what", "ranks", "layout", "causal", "exchange")
    assert [tuple(row["params"][name] for name in names) for row in rows] == [
        (what, ranks, layout, causal, "local")
        for causal in (False, True) for layout in layouts for what in NAMES
    ]  # fmt: skip
    assert not module.worse(rows)
    for row in rows:
        peers = row["peers"]
        assert 0 < peers["rounding"] <= 1.01 * peers["one_rank"] and row["unit"] == "rms"
        assert 0.9 * peers["one_rank"] < row["ours"] < 1.02 * peers["one_rank"]
        assert ranks > 1 or row["ours"] == peers["one_rank"]


def test_a_ring_that_adds_in_16_bits_is_found():
    x = draw("bf16", 4, heads=4, kv_heads=2, query_len=128, head_dim=64)
    rows = module.rows_of(x, 2, {"local": rounded_shares, "right": on_host(2)}, on_host(1), **SHAPE)
    found = {(row["params"]["what"], row["params"]["exchange"]) for row in module.worse(rows)}
    assert found == {("dk", "local"), ("dv", "local")}


def test_what_is_not_a_number_is_found():
    row = {"ours": float("nan"), "peers": {"one_rank": 1.0}}
    assert module.worse([row]) == [row]
