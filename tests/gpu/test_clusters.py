"""Calls and steps of many rows and keys, whose blocks share K and V in clusters of two (sm90a)."""

import pytest
from helpers.rings import case, local_ring, same_bits
from helpers.some_rows import assert_rows

from baracuda_kernels.testing import torch_qkv

pytestmark = pytest.mark.gpu

# An odd number of query tiles, so that the last cluster has one too many, and a ragged last one. Under
# a mask the number must be even.
ROWS = 32 * 128 + 65
# (head_dim, keys, causal): of each kernel with clusters. At 128 the number of keys decides between
# key tiles of 144 and of 128 columns; under a mask these have 128.
CALLS = [
    (128, 4096 + 33, False),
    (128, 34 * 128, False),
    (128, 65 * 128 + 77, True),
    (256, 2048 + 33, False),
]


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(("head_dim", "key_len", "is_causal"), CALLS)
@pytest.mark.parametrize("groups", [1, 3])
def test_against_float64(torch, dtype, head_dim, key_len, is_causal, groups):
    # Under a mask as many rows as keys, so that most tiles have many keys.
    rows = key_len if is_causal else ROWS
    q, k, v = torch_qkv("normal", dtype, 0, batch=2, heads=3, kv_heads=groups, query_len=rows,
                        key_len=key_len, head_dim=head_dim)  # fmt: skip
    y, lse = local_ring(torch, "sm90a", dtype, q, k, v, 1, is_causal=is_causal)
    assert y.isfinite().all() and lse.isfinite().all()
    assert_rows(torch, dtype, q, k, v, y, lse, is_causal=is_causal)


@pytest.mark.parametrize(("head_dim", "key_len", "is_causal"), CALLS)
def test_the_same_bits_as_without_clusters_and_in_every_run(torch, head_dim, key_len, is_causal):
    """Fewer than 2048 rows take no clusters: their bits are those of the same rows in the call."""
    rows = key_len if is_causal else ROWS
    q, k, v = torch_qkv("normal", "bf16", 1, heads=5, query_len=rows, key_len=key_len,
                        head_dim=head_dim)  # fmt: skip
    y, lse = local_ring(torch, "sm90a", "bf16", q, k, v, 1, is_causal=is_causal)
    few = q[:, :, :1920].contiguous()
    one, lse_of_one = local_ring(torch, "sm90a", "bf16", few, k, v, 1, is_causal=is_causal)
    assert same_bits(torch, y[:, :, :1920].contiguous(), one)
    assert same_bits(torch, lse[:, :, :1920].contiguous(), lse_of_one)
    for _ in range(20):
        again = local_ring(torch, "sm90a", "bf16", q, k, v, 1, is_causal=is_causal)
        assert same_bits(torch, y, again[0]) and same_bits(torch, lse, again[1])


def test_fewer_rows_than_keys_under_a_mask(torch):
    q, k, v = torch_qkv("normal", "bf16", 2, heads=2, query_len=ROWS + 128, key_len=8192, head_dim=128)
    y, lse = local_ring(torch, "sm90a", "bf16", q, k, v, 1, is_causal=True)
    assert_rows(torch, "bf16", q, k, v, y, lse, is_causal=True)


# (head_dim, rows of a rank, layout, causal). Zigzag has steps of half the rows and steps of half the
# keys. Half of 4480 rows are whole units of 64 rows, half of 4600 are not.
RINGS = [
    (128, ROWS, "contiguous", False),
    (128, 35 * 128 + 80, "contiguous", False),
    (128, 4480, "zigzag", True),
    (128, 4600, "zigzag", True),
    (128, 65 * 128 + 64, "striped", True),
    (256, ROWS, "contiguous", False),
    (256, 4480, "zigzag", True),
]


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(("head_dim", "rows", "layout", "is_causal"), RINGS)
def test_steps_of_a_ring(torch, dtype, head_dim, rows, layout, is_causal):
    """Three ranks have a first, a middle and a last step. `test_overlapped_exchange.py` compares their
    bits with those of steps without clusters."""
    q, k, v = torch_qkv("normal", dtype, 3, heads=4, kv_heads=2, query_len=3 * rows,
                        head_dim=head_dim)  # fmt: skip
    with case(layout=layout, rows=rows):
        y, lse = local_ring(torch, "sm90a", dtype, q, k, v, 3, layout=layout, is_causal=is_causal)
        assert y.isfinite().all() and lse.isfinite().all()
        assert_rows(torch, dtype, q, k, v, y, lse, is_causal=is_causal)
        for _ in range(5):
            again = local_ring(torch, "sm90a", dtype, q, k, v, 3, layout=layout, is_causal=is_causal)
            assert same_bits(torch, y, again[0]) and same_bits(torch, lse, again[1])
