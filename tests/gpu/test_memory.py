"""The ring's memory: operands, scratch by the formulas, and at most 4 MB more."""

from random import Random

import pytest
from helpers.rings import descriptor, preference, rank_arrays, shards_of

import baracuda_kernels as bk
from baracuda_kernels.testing import torch_qkv

pytestmark = [pytest.mark.gpu, pytest.mark.device_memory]

_MARGIN = 4 << 20


def _used(torch) -> int:
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("family", "dtype"), [("sm90a", "bf16"), ("sm80", "bf16"), ("simt", "f32")]
)
def test_nothing_beyond_operands_and_scratch(torch, family, dtype, ranks):
    q, k, v = torch_qkv("normal", dtype, 0, heads=8, kv_heads=2, query_len=4096, head_dim=128)
    stream = bk.Stream(torch.cuda.current_stream())
    shards = shards_of(q, k, v, ranks, "zigzag")
    desc = descriptor(
        *shards[0][:2], dtype, is_causal=True, sequence_layout=bk.SequenceLayout.ZIGZAG
    )
    plan = bk.RingAttentionPlan.select(stream, desc, preference(family, dtype))
    rows, head_dim = 8 * 4096 // ranks, 128
    assert plan.kv_scratch_elements == 2 * 2 * (4096 // ranks) * head_dim
    assert plan.accumulator_scratch_bytes >= rows * (head_dim + 2) * 4
    tile = 128  # the largest that a kernel may round the rows up to, per head
    padded = 8 * (-(-(4096 // ranks) // tile) * tile)
    assert plan.accumulator_scratch_bytes <= padded * (head_dim + 2) * 4
    arrays = [rank_arrays(torch, plan, *shard, ranks) for shard in shards]

    before = _used(torch)
    ring = bk.LocalCommunicator.ring(ranks, device=0)
    ring.run_all(stream, [plan] * ranks, [rank.args for rank in arrays])
    after_first = _used(torch)
    assert after_first - before <= _MARGIN
    for _ in range(50):
        ring.run_all(stream, [plan] * ranks, [rank.args for rank in arrays])
    assert _used(torch) <= after_first


def test_rings_and_plans_give_their_memory_back(torch):
    q, k, v = torch_qkv("normal", "bf16", 0, heads=2, query_len=512, head_dim=64)
    stream = bk.Stream(torch.cuda.current_stream())
    shards = shards_of(q, k, v, 4, "contiguous")
    desc = descriptor(*shards[0][:2], "bf16")
    used = []
    for _ in range(20):
        plan = bk.RingAttentionPlan.select(stream, desc, preference("sm80", "bf16"))
        arrays = [rank_arrays(torch, plan, *shard, 4) for shard in shards]
        ring = bk.LocalCommunicator.ring(4, device=0)
        ring.run_all(stream, [plan] * 4, [rank.args for rank in arrays])
        torch.cuda.synchronize()
        del ring, arrays, plan
        used.append(_used(torch))
    assert used[-1] <= used[4], used


@pytest.mark.endurance
def test_device_memory_is_flat_after_2000_random_runs(torch):
    """Plans, rings, layouts and world sizes at random, in one process."""
    random = Random(0)
    stream = bk.Stream(torch.cuda.current_stream())

    def run():
        ranks, rows = random.randrange(1, 9), random.randrange(1, 200)
        family, dtype, head_dim = random.choice(
            [("sm80", "bf16", 64), ("sm80", "f16", 128), ("simt", "f32", 32)]
        )
        layout = random.choice(["contiguous", "zigzag", "striped"])
        shape = {"heads": 2, "query_len": rows * ranks, "head_dim": head_dim}
        shards = shards_of(*torch_qkv("normal", dtype, 0, **shape), ranks, layout)
        desc = descriptor(
            *shards[0][:2], dtype, is_causal=random.random() < 0.5,
            sequence_layout=bk.SequenceLayout.parse(layout),
        )  # fmt: skip
        plan = bk.RingAttentionPlan.select(stream, desc, preference(family, dtype))
        arrays = [rank_arrays(torch, plan, *shard, ranks) for shard in shards]
        ring = bk.LocalCommunicator.ring(ranks, device=0)
        ring.run_all(stream, plan, [rank.args for rank in arrays])
        torch.cuda.synchronize()

    def settled():
        torch.cuda.empty_cache()
        return _used(torch)

    for _ in range(100):
        run()
    before = settled()
    for _ in range(2000):
        run()
    assert settled() - before <= _MARGIN
