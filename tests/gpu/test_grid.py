"""Every kernel family on the GPU against float64: dtypes, head dims, lengths, masks, heads."""

import math

import pytest
from helpers.rings import case, local_ring, preference, same_bits

import baracuda_kernels as bk
from baracuda_kernels.testing import assert_close, attention, max_score, numpy_qkv, torch_qkv

pytestmark = pytest.mark.gpu

SIMT = [("simt", t, d) for t in ("f16", "bf16", "f32", "f64") for d in (1, 40, 64, 128, 200, 256)]
SM90A = [("sm90a", t, d) for t in ("f16", "bf16") for d in (64, 128, 256)]
SM80 = [("sm80", t, d) for t in ("f16", "bf16") for d in (64, 96, 128, 192, 256)]

# (query_len, key_len): around every tile edge, one-row, one-key, long against short.
LENGTHS = [(1, 1), (1, 257), (63, 65), (64, 64), (65, 127), (127, 63), (128, 129), (300, 1)]
LENGTHS += [(1000, 127), (127, 1000)]
# (heads, kv_heads)
HEADS = [(2, 2), (4, 2), (6, 1)]


@pytest.mark.parametrize(("family", "dtype", "head_dim"), SIMT + SM80 + SM90A)
def test_lengths_masks_and_heads(torch, family, dtype, head_dim):
    for number, (query_len, key_len) in enumerate(LENGTHS):
        heads, kv_heads = HEADS[number % len(HEADS)]
        for is_causal in (False, True):
            shape = {
                "batch": 1 + number % 2,
                "heads": heads,
                "kv_heads": kv_heads,
                "query_len": query_len,
                "key_len": key_len,
                "head_dim": head_dim,
            }
            with case(is_causal=is_causal, **shape):
                q, k, v = torch_qkv("normal", dtype, number, **shape)
                exact = attention(q, k, v, is_causal=is_causal)
                y, lse = local_ring(torch, family, dtype, q, k, v, 1, is_causal=is_causal)
                assert_close(family, dtype, y, exact[0], lse, exact[1])


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("family", "dtype", "head_dim"),
    [
        ("sm90a", "bf16", 128),
        ("sm90a", "f16", 64),
        ("sm90a", "bf16", 256),
        ("sm80", "bf16", 128),
        ("sm80", "f16", 64),
        ("sm80", "bf16", 256),
        ("simt", "f32", 128),
        ("simt", "f64", 64),
        ("simt", "bf16", 128),
    ],
)
def test_long_sequences(torch, family, dtype, head_dim, is_causal):
    q, k, v = torch_qkv("normal", dtype, 0, heads=4, kv_heads=2, query_len=4096, head_dim=head_dim)
    exact = attention(q, k, v, is_causal=is_causal)
    y, lse = local_ring(torch, family, dtype, q, k, v, 1, is_causal=is_causal)
    assert_close(family, dtype, y, exact[0], lse, exact[1])


@pytest.mark.parametrize(
    ("dtype", "head_dim"), [("bf16", 128), ("f16", 128), ("f16", 64), ("bf16", 256)]
)
@pytest.mark.parametrize("query_len", [4097, 3000])
def test_heads_in_sections_give_the_bits_of_a_group_alone(torch, dtype, head_dim, query_len):
    """More K and V than a section holds, with groups: the block of a tile changes no bit."""
    q, k, v = torch_qkv("normal", dtype, 0, batch=2, heads=32, kv_heads=16, query_len=query_len,
                        head_dim=head_dim)  # fmt: skip
    y, lse = local_ring(torch, "sm90a", dtype, q, k, v, 1, is_causal=True)
    for batch, head in ((0, 0), (0, 7), (0, 15), (1, 0), (1, 11), (1, 15)):
        one, rows = slice(batch, batch + 1), slice(2 * head, 2 * head + 2)
        keys = [x[one, head : head + 1].contiguous() for x in (k, v)]
        alone = local_ring(torch, "sm90a", dtype, q[one, rows].contiguous(), *keys, 1,
                           is_causal=True)  # fmt: skip
        assert same_bits(torch, y[one, rows], alone[0]), (batch, head)
        assert same_bits(torch, lse[one, rows], alone[1]), (batch, head)


@pytest.mark.parametrize("distribution", ["heavy", "outliers", "large_logits"])
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("sm90a", "bf16"),
        ("sm90a", "f16"),
        ("sm80", "bf16"),
        ("sm80", "f16"),
        ("simt", "f32"),
        ("simt", "f64"),
        ("simt", "bf16"),
    ],
)
def test_distributions(torch, family, dtype, distribution):
    for is_causal in (False, True):
        shape = {"heads": 4, "query_len": 333, "key_len": 517, "head_dim": 64}
        q, k, v = torch_qkv(distribution, dtype, 7, **shape)
        exact = attention(q, k, v, is_causal=is_causal)
        y, lse = local_ring(torch, family, dtype, q, k, v, 1, is_causal=is_causal)
        score = max_score(q.double().cpu().numpy(), k.double().cpu().numpy(), None)
        with case(is_causal=is_causal):
            assert_close(family, dtype, y, exact[0], lse, exact[1], score=score)


@pytest.mark.parametrize(("family", "dtype", "head_dim"), SM80 + SM90A)
def test_rows_whose_scores_are_all_negative(torch, family, dtype, head_dim):
    """Alone, beside others in a warp, and where the maximum is -0, +0 or rises from tile to tile."""
    shape = {"heads": 2, "query_len": 300, "key_len": 700, "head_dim": head_dim}
    q, k, v = torch_qkv("normal", dtype, 9, **shape)
    q, k = q.abs(), -k.abs()
    for rows in (slice(0, 0), slice(100, 200, 3), slice(0, 300, 2)):  # these see scores above zero
        mixed = q.clone()
        mixed[:, :, rows] *= -1
        mixed[:, :, 40] = 0
        for keys in (k, k * torch.linspace(1.0, 0.0, 700, device="cuda")[:, None].to(k.dtype)):
            for is_causal in (False, True):
                exact = attention(mixed, keys, v, is_causal=is_causal)
                y, lse = local_ring(torch, family, dtype, mixed, keys, v, 1, is_causal=is_causal)
                score = max_score(mixed.double().cpu().numpy(), keys.double().cpu().numpy(), None)
                with case(rows=rows, is_causal=is_causal):
                    assert_close(family, dtype, y, exact[0], lse, exact[1], score=score)


@pytest.mark.parametrize("scale", [-0.1, 0.0, 1e-3, 0.5, 3.0])
@pytest.mark.parametrize(
    ("family", "dtype"), [("sm90a", "bf16"), ("sm80", "bf16"), ("simt", "bf16"), ("simt", "f64")]
)
def test_scales(torch, family, dtype, scale):
    q, k, v = torch_qkv("normal", dtype, 8, heads=2, query_len=200, head_dim=64)
    if family in ("sm80", "sm90a") and scale <= 0:
        stream = bk.Stream(torch.cuda.current_stream())
        element = bk.ElementKind.parse(dtype)
        desc = bk.RingAttentionDescriptor(1, 2, 200, 200, 64, scale, element=element)
        with pytest.raises(bk.errors.UnsupportedError, match="scale"):
            bk.RingAttentionPlan.select(stream, desc, preference("sm80", dtype))
        return
    exact = attention(q, k, v, scale=scale, is_causal=True)
    y, lse = local_ring(torch, family, dtype, q, k, v, 1, scale=scale, is_causal=True)
    score = max_score(q.double().cpu().numpy(), k.double().cpu().numpy(), scale)
    assert_close(family, dtype, y, exact[0], lse, exact[1], score=score)


@pytest.mark.parametrize(
    ("family", "dtype"), [("sm90a", "bf16"), ("sm80", "bf16"), ("simt", "f32"), ("simt", "f64")]
)
@pytest.mark.parametrize(("query_len", "key_len"), [(5, 0), (0, 5), (0, 0)])
def test_nothing_to_attend_to(torch, family, dtype, query_len, key_len):
    q, k, v = torch_qkv(
        "normal", dtype, 9, heads=2, query_len=query_len, key_len=key_len, head_dim=64
    )
    for ranks in (1, 3):
        parts = [x.repeat(1, 1, ranks, 1) for x in (q, k, v)]
        y, lse = local_ring(torch, family, dtype, *parts, ranks, is_causal=True)
        assert (y == 0).all() and (lse == -math.inf).all()
        assert y.shape == parts[0].shape


@pytest.mark.parametrize(
    ("family", "dtype"), [("sm90a", "bf16"), ("sm80", "bf16"), ("simt", "f32")]
)
def test_strided_operands(torch, family, dtype):
    """[B,S,H,D] storage seen as [B,H,S,D]: the strides are honoured, nothing is copied."""
    q, k, v = torch_qkv(
        "normal", dtype, 10, batch=2, heads=4, kv_heads=2, query_len=150, head_dim=64
    )
    stream = bk.Stream(torch.cuda.current_stream())
    desc = bk.FlashSdpaDescriptor(
        2, 4, 150, 150, 64, None, True, bk.ElementKind.parse(dtype), num_kv_heads=2
    )
    plan = bk.FlashSdpaPlan.select(stream, desc, preference(family, dtype))
    results = []
    for strided in (False, True):
        operands = [
            x.transpose(1, 2).contiguous().transpose(1, 2) if strided else x for x in (q, k, v)
        ]
        y = torch.full_like(operands[0], float("nan"))
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        assert y.stride() == operands[0].stride()
        plan.run(stream, bk.FlashSdpaArgs(**dict(zip("qkv", operands, strict=True)), y=y, lse=lse))
        results.append(y.contiguous())
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("family", "dtype"), [("sm90a", "bf16"), ("sm80", "bf16"), ("simt", "f32"), ("simt", "f64")]
)
def test_nan_reaches_exactly_the_rows_that_see_it(torch, family, dtype):
    q, k, v = torch_qkv("normal", dtype, 11, heads=1, query_len=200, head_dim=64)
    k[0, 0, 130] = float("nan")
    y, _ = local_ring(torch, family, dtype, q, k, v, 1, is_causal=True)
    assert torch.isnan(y[0, 0, 130:]).all(), "rows that see the NaN"
    assert not torch.isnan(y[0, 0, :130]).any(), "rows that do not"
    k[0, 0, 130] = 0
    q[0, 0, 7] = float("nan")
    y, _ = local_ring(torch, family, dtype, q, k, v, 1, is_causal=True)
    bad = torch.isnan(y[0, 0]).any(-1)
    assert bad[7] and bad.sum() == 1


def test_the_torch_oracle_is_the_oracle(torch):
    shape = {"batch": 2, "heads": 4, "kv_heads": 2, "query_len": 37, "key_len": 53, "head_dim": 16}
    arrays = numpy_qkv("heavy", "f64", 3, **shape)
    tensors = [torch.from_numpy(x).cuda() for x in arrays]
    for is_causal in (False, True):
        y, lse = attention(*arrays, is_causal=is_causal, scale=0.7)
        same_y, same_lse = attention(*tensors, is_causal=is_causal, scale=0.7)
        assert abs(same_y.cpu().numpy() - y).max() < 1e-12
        assert abs(same_lse.cpu().numpy() - lse).max() < 1e-12
