"""A deterministic kernel's gradients on a ring of processes: the same bits in every run, by every
exchange, eager and captured, with exchanges beside the steps and with none."""

import pytest
from helpers.rank_pool import RankPool

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank]

RUNS = 100
SHAPE = {"heads": 8, "kv_heads": 2, "query_len": 2 * 1024}


@pytest.fixture(
    scope="module",
    params=[1, pytest.param(2, marks=pytest.mark.multi_gpu(2))],
    ids=["1 GPU", "2 GPUs"],
)
def pair(request, torch):
    ranks = RankPool(2, device_each=request.param == 2)
    yield ranks
    ranks.close()


@pytest.mark.parametrize("exchange", ["nccl", "peer"])
@pytest.mark.parametrize(
    ("family", "dtype", "head_dim", "layout", "is_causal"),
    [
        ("sm90a-deterministic", "bf16", 128, "zigzag", True),
        ("sm90a-deterministic", "f16", 64, "contiguous", False),
        ("simt", "bf16", 64, "striped", True),
    ],
)
def test_100_runs_have_the_bits_of_steps_alone(
    pair, exchange, family, dtype, head_dim, layout, is_causal
):
    hops = pair.join(exchange=exchange)
    assert all(answer["exchange"] == [exchange] * 2 for answer in hops)
    task = {
        "do": "repeated_gradients", "family": family, "dtype": dtype, "seed": 3, "layout": layout,
        "is_causal": is_causal, "shape": SHAPE | {"head_dim": head_dim}, "runs": RUNS,
        "register": exchange == "peer",
    }  # fmt: skip
    for answer in pair.run(task, seconds=120):
        assert answer == {"deterministic": True, "local": 0, "eager": 0, "captured": 0}
