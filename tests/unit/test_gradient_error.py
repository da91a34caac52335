"""`gradient_error` rows, over rings on the host."""

from itertools import product

import numpy as np
from helpers.gradients import NAMES, draw

import baracuda_kernels as bk
from benchmarks import gradient_error as module

SHAPE = {"family": "host", "dtype": "bf16", "heads": 4, "kv_heads": 2, "head_dim": 64, "chunk": 64}


def on_host(ranks):
    return lambda x, layout, causal: bk.run_local_ring(
        x.q, x.k, x.v, ranks, dy=x.dy, is_causal=causal, sequence_layout=layout
    )[2:]


def rounded_shares(x, layout, causal):
    """dk and dv of two ranks, off by about a 16-bit rounding more, as sums in 16 bits are."""
    whole = on_host(2)(x, layout, causal)
    noise = np.random.default_rng(0)
    steps = [noise.uniform(-1, 1, g.shape) * np.abs(g.astype(np.float64)) * 2.0**-7 for g in whole]
    worse = [(g.astype(np.float64) + s).astype(g.dtype) for g, s in zip(whole, steps, strict=True)]
    return [whole[0], *worse[1:]]


def test_a_ring_that_adds_in_16_bits_is_found():
    x = draw("bf16", 4, heads=4, kv_heads=2, query_len=128, head_dim=64)
    rings = {"right": on_host(2), "wrong": rounded_shares}
    rows = module.rows_of(x, 2, rings, on_host(1), **SHAPE)
    names = ("causal", "exchange", "layout", "what")
    every = product((False, True), rings, module.LAYOUTS, NAMES)
    assert [tuple(row["params"][name] for name in names) for row in rows] == list(every)
    found = {(row["params"]["what"], row["params"]["exchange"]) for row in module.worse(rows)}
    assert found == {("dk", "wrong"), ("dv", "wrong")}
    for row in rows:
        assert 0 < row["peers"]["rounding"] <= 1.01 * row["peers"]["one_rank"]
    alone = module.rows_of(x, 1, {"local": None}, on_host(1), **SHAPE)
    assert all(row["ours"] == row["peers"]["one_rank"] for row in alone) and len(alone) == 6


def test_what_is_not_a_number_is_found():
    row = {"ours": float("nan"), "peers": {"one_rank": 1.0}}
    assert module.worse([row]) == [row]
    nan = np.full((1, 2), np.nan)
    assert module.relative(nan, np.ones((1, 2))) == module.relative(np.ones((1, 2)), nan) == np.inf
