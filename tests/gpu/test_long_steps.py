"""Whole calls, and last steps of a ring, of many rows and keys at head_dim 128, which sm90a computes
with three warpgroups."""

import pytest
from helpers.rings import case, local_ring, same_bits
from helpers.some_rows import assert_rows

from baracuda_kernels.testing import torch_qkv

pytestmark = pytest.mark.gpu

# Enough rows and heads for it, with groups.
ROWS, HEADS = 8192, {"heads": 24, "kv_heads": 6}


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(("key_len", "is_causal"), [(ROWS, True), (4096 + 33, False)])
def test_whole_calls_of_groups(torch, dtype, key_len, is_causal):
    q, k, v = torch_qkv("normal", dtype, 0, **HEADS, query_len=ROWS, key_len=key_len, head_dim=128)
    y, lse = local_ring(torch, "sm90a", dtype, q, k, v, 1, is_causal=is_causal)
    assert y.isfinite().all() and lse.isfinite().all()
    assert_rows(torch, dtype, q, k, v, y, lse, is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [False, True])
def test_whole_calls_without_groups(torch, is_causal):
    q, k, v = torch_qkv("normal", "bf16", 1, heads=16, query_len=12288 + 65, head_dim=128)
    y, lse = local_ring(torch, "sm90a", "bf16", q, k, v, 1, is_causal=is_causal)
    assert_rows(torch, "bf16", q, k, v, y, lse, is_causal=is_causal)


def test_a_sequence_has_the_same_bits_in_any_batch(torch):
    """And fewer heads have others, so the calls above are those of three warpgroups."""
    q, k, v = torch_qkv("normal", "bf16", 2, batch=2, **HEADS, query_len=ROWS, key_len=4096,
                        head_dim=128)  # fmt: skip
    y, lse = local_ring(torch, "sm90a", "bf16", q, k, v, 1)
    for b in range(2):
        alone = [x[b : b + 1].contiguous() for x in (q, k, v)]
        one = local_ring(torch, "sm90a", "bf16", *alone, 1)
        assert same_bits(torch, y[b : b + 1], one[0]) and same_bits(torch, lse[b : b + 1], one[1])
    half = [x[:1, : x.shape[1] // 2].contiguous() for x in (q, k, v)]
    fewer = local_ring(torch, "sm90a", "bf16", *half, 1)
    assert not same_bits(torch, y[:1, :12], fewer[0])


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_rings(torch, layout, is_causal):
    """The steps before the last have tiles of 128 rows, so tiles of 128 and 192 rows share a state."""
    q, k, v = torch_qkv("normal", "bf16", 3, **HEADS, query_len=3 * ROWS + 6, head_dim=128)
    with case(layout=layout, is_causal=is_causal):
        y, lse = local_ring(torch, "sm90a", "bf16", q, k, v, 3, layout=layout, is_causal=is_causal)
        assert_rows(torch, "bf16", q, k, v, y, lse, is_causal=is_causal)
