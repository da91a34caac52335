"""Gradients over NCCL and by peer, one process per rank, all on one GPU by default: against float64, and
the same bits whichever way they go."""

from pathlib import Path

import pytest
from helpers.cuda_ring_gradients import gradient_problem, same
from helpers.gradients import NAMES, Problem
from helpers.rank_pool import RankPool

import baracuda_kernels as bk
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
    task = {"do": "gradients", "dtype": "bf16", "seed": 3, "shape": shape, "layout": layout,
            "is_causal": is_causal, "family": family, **task}  # fmt: skip
    pool.run(task, seconds=120)
    x = Problem(*gradient_problem(torch, task))
    folder, gathered = Path(pool.folder.name), []
    for name, whole in zip(NAMES, x[:3], strict=True):
        shape = [*whole.shape[:2], whole.shape[2] // ranks, head_dim]
        found = [torch.frombuffer(bytearray((folder / f"{name}-{rank}.bin").read_bytes()),
                                  dtype=whole.dtype).reshape(shape).cuda()
                 for rank in range(ranks)]  # fmt: skip
        gathered.append(bk.unshard(found, sequence_layout=layout))
    exact = attention_backward(*x[:4], is_causal=is_causal)
    assert_gradients(family, "bf16", gathered, exact)
    return gathered


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("family", ["simt", "sm90a"])
def test_against_float64(torch, pool, family, is_causal):
    for layout, rows in LAYOUTS:
        check(torch, pool, rows=rows, layout=layout, is_causal=is_causal, family=family)


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
