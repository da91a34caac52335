"""Real NCCL, one process per rank, all on one GPU: against float64 and against the local ring."""

from pathlib import Path

import pytest
from helpers.rank_pool import RankPool
from helpers.ring_files import SHAPE, check, ring_task
from helpers.rings import local_ring, same_bits

import baracuda_kernels as bk
from baracuda_kernels.testing import torch_qkv

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank]

@pytest.fixture(scope="module", params=[2, 4, 8])
def pool(request, torch):
    ranks = RankPool(request.param)
    yield ranks
    ranks.close()


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_against_float64_and_the_local_ring(torch, pool, dtype, is_causal, staged):
    for layout, rows in (("contiguous", 192), ("zigzag", 157), ("striped", 64)):
        task = ring_task(pool, dtype, rows=rows, layout=layout, is_causal=is_causal, staged=staged)
        check(torch, pool, task)


@pytest.mark.device_memory
def test_nothing_grows_from_run_2_to_run_100(torch, pool):
    pool.run(ring_task(pool, "bf16", runs=2))  # after it, no rank is still loading anything
    # Eight ranks on one card take 0.2 s a run over sockets; two and four show the hundred.
    runs = 100 if pool.world_size < 8 else 20
    answers = pool.run(ring_task(pool, "bf16", runs=runs), seconds=120)
    # The ranks share the card, so each sees the others' memory too: compare the totals.
    second = min(a["free_bytes"][0] for a in answers)
    last = min(a["free_bytes"][1] for a in answers)
    assert last >= second, (
        f"{(second - last) / 2**20:.1f} MiB more after run {runs} than after run 2"
    )


def test_sums_travel_behind_the_steps(torch, pool):
    token = pool.run({"do": "unique_id"}, ranks=[0])[0]["unique_id"]
    rings = [
        {"parts": parts, "launch_adds": adds, "count": 1000}
        for parts in (1, 2)
        for adds in (False, True)
    ]
    task = {"do": "sums", "unique_id": token, "world_size": pool.world_size, "rings": rings}
    answers = pool.run(task, seconds=120)
    assert all(all(answer["right"]) for answer in answers)


def test_split_makes_independent_rings(torch, pool):
    answers = pool.run({"do": "split"})
    half = pool.world_size // 2
    assert [a["world_size"] for a in answers] == [half] * pool.world_size
    # Reversed order: the highest old rank of each parity is the new rank 0.
    assert [a["rank"] for a in answers] == [half - 1 - r // 2 for r in range(pool.world_size)]
    task = ring_task(pool, "bf16") | {"comm": "half"}
    pool.run(task)
    q, k, v = torch_qkv("normal", "bf16", task["seed"], **task["shape"])
    expected, _ = local_ring(torch, "sm80", "bf16", q, k, v, half, is_causal=True, layout="zigzag")
    folder = Path(pool.folder.name)
    shards = bk.shard(expected, half, sequence_layout="zigzag")
    for old, answer in enumerate(answers):
        raw = bytearray((folder / f"y-{old}.bin").read_bytes())
        mine = torch.frombuffer(raw, dtype=torch.bfloat16).cuda()
        assert same_bits(torch, mine, shards[answer["rank"]].reshape(-1))


@pytest.mark.parametrize(("backend", "borrow"), [("gloo", False), ("nccl", True)])
def test_communicator_of_a_torch_group(torch, pool, backend, borrow):
    name, ranks = f"torch-{backend}", pool.world_size
    join = {"do": "join_torch", "world_size": ranks, "backend": backend, "borrow": borrow}
    answers = pool.run(join | {"name": name}, seconds=120)
    assert [a["rank"] for a in answers] == list(range(ranks))
    assert all(a["owned"] != borrow for a in answers)
    check(torch, pool, ring_task(pool, "bf16") | {"comm": name})
    pool.run({"do": "leave_torch", "name": name})


def test_in_order_beside_the_groups_own_communicator(torch, pool):
    """Two NCCL communicators on the same streams, as the architecture page says to order them."""
    ranks, runs = pool.world_size, 20 if pool.world_size < 8 else 3
    join = {"do": "join_torch", "world_size": ranks, "backend": "nccl", "borrow": False}
    assert all(a["owned"] for a in pool.run(join | {"name": "beside"}, seconds=120))
    shape = {**SHAPE, "query_len": 128 * ranks}
    task = {"do": "interleave", "name": "beside", "seed": 5, "shape": shape, "runs": runs}
    answers = pool.run(task, seconds=120)
    assert [a["differing"] for a in answers] == [0] * ranks
    q, k, v = torch_qkv("normal", "bf16", 5, **shape)
    expected, _ = local_ring(torch, "sm80", "bf16", q, k, v, ranks)
    for rank, shard in enumerate(bk.shard(expected, ranks, sequence_layout="contiguous")):
        raw = bytearray((Path(pool.folder.name) / f"y-{rank}.bin").read_bytes())
        mine = torch.frombuffer(raw, dtype=torch.bfloat16).cuda()
        assert same_bits(torch, mine, shard.reshape(-1)), f"rank {rank}"
    pool.run({"do": "leave_torch", "name": "beside"})
