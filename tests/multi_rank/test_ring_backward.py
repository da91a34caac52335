"""Gradients over NCCL and by peer, one process per rank, all on one GPU by default: against float64, and
the same bits whichever way they go."""

import pytest
from helpers.cuda_ring_gradients import gradient_problem, pool_gradients, same
from helpers.gradients import Problem
from helpers.rank_pool import RankPool

from baracuda_kernels.testing import assert_gradients, attention_backward

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank]

LAYOUTS = (("contiguous", 192), ("zigzag", 157), ("striped", 64))


@pytest.fixture(scope="module", params=[2, 4, 8])
def pool(request, torch):
    ranks = RankPool(request.param)
    yield ranks
    ranks.close()


def check(torch, pool, *, rows=96, layout="zigzag", is_causal=True, family="simt", head_dim=64,
          **task):  # fmt: skip
    ranks = pool.world_size
    shape = {"heads": 4, "kv_heads": 2, "query_len": rows * ranks, "head_dim": head_dim}
    task = {"dtype": "bf16", "seed": 3, "shape": shape, "layout": layout, "is_causal": is_causal,
            "family": family, **task}  # fmt: skip
    x = Problem(*gradient_problem(torch, task))
    gathered = pool_gradients(torch, pool, task, x)
    exact = attention_backward(*x[:4], is_causal=is_causal)
    assert_gradients(family, "bf16", gathered, exact)
    return gathered


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("family", ["simt", "sm90a"])
def test_against_float64(torch, pool, family, is_causal):
    for layout, rows in LAYOUTS:
        check(torch, pool, rows=rows, layout=layout, is_causal=is_causal, family=family)


@pytest.mark.parametrize("with_b", [False, True])
@pytest.mark.parametrize("exchange", ["nccl", "peer"])
@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_the_least_scratch_gives_the_same_bits(torch, pool, exchange, layout, with_b):
    shape = {"heads": 8, "kv_heads": 1, "query_len": 96 * pool.world_size, "head_dim": 64}
    given = {"shape": shape, "layout": layout, "family": "sm90a-deterministic"}
    expected = check(torch, pool, **given)
    pool.join(exchange=exchange, wait="event")
    for options in ({}, {"graph": True}, {"late_rank": 1, "late": 0.3}):
        found = check(
            torch, pool, runs=3, register=exchange == "peer", least_with_b=with_b, **given, **options
        )
        assert same(torch, "sm90a-deterministic", expected, found), options
    pool.join(exchange="auto", wait="event")


@pytest.mark.parametrize("exchange", ["nccl", "peer"])
def test_graphs_late_ranks_and_other_exchanges_give_the_same_bits(torch, pool, exchange):
    expected = check(torch, pool)
    waits = ("event", "value", "gate") if exchange == "peer" else ("event",)
    for wait in waits:
        answers = pool.join(exchange=exchange, wait=wait)
        assert [a["exchange"] for a in answers] == [[exchange] * pool.world_size] * pool.world_size
        for options in ({}, {"graph": True}, {"late_rank": 1, "late": 0.3}):
            found = check(torch, pool, runs=3, register=exchange == "peer", **options)
            assert same(torch, "simt", expected, found), (wait, options)
    pool.join(exchange="auto", wait="event")
