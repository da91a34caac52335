"""Rings of 1 to 8 virtual ranks on one GPU: state carried across steps, masks on global rows."""

import threading
from itertools import permutations

import pytest
from helpers.rings import (
    case,
    descriptor,
    local_ring,
    preference,
    rank_arrays,
    same_bits,
    shards_of,
)

import baracuda_kernels as bk
from baracuda_kernels.testing import (
    assert_close,
    attention,
    max_score,
    rms_over_rounding,
    torch_qkv,
)

pytestmark = pytest.mark.gpu

LAYOUTS = ("contiguous", "zigzag", "striped")
KERNELS = [
    ("sm90a", "bf16", 128),
    ("sm90a", "f16", 64),
    ("sm90a", "bf16", 256),
    ("sm80", "bf16", 128),
    ("sm80", "f16", 64),
    ("simt", "f32", 64),
    ("simt", "bf16", 128),
    ("simt", "f64", 32),
]


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_against_float64(torch, family, dtype, head_dim, ranks):
    # (rows, keys) of a rank: even, odd, unequal; the last leaves whole steps that see nothing.
    for rows, keys in ((64, 64), (33, 33), (77, 130), (130, 77), (5, 200)):
        q, k, v = torch_qkv(
            "normal",
            dtype,
            ranks,
            heads=4,
            kv_heads=2,
            query_len=rows * ranks,
            key_len=keys * ranks,
            head_dim=head_dim,
        )
        for is_causal in (False, True):
            exact = attention(q, k, v, is_causal=is_causal)
            for layout in LAYOUTS if is_causal else LAYOUTS[:1]:
                with case(rows=rows, keys=keys, is_causal=is_causal, layout=layout):
                    y, lse = local_ring(
                        torch, family, dtype, q, k, v, ranks, is_causal=is_causal, layout=layout
                    )
                    assert_close(family, dtype, y, exact[0], lse, exact[1])


# A zigzag half of whole tiles: there steps leave one half of the rows alone. 288 keys, and half of
# them, are whole tiles of sm90a's wide kernels at head_dim 128; half of 300 rows is not.
@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_zigzag_halves_of_whole_tiles(torch, family, dtype, head_dim, ranks):
    for rows, keys in ((256, 256), (384, 200), (768, 384), (256, 288), (300, 2304)):
        q, k, v = torch_qkv(
            "normal", dtype, ranks, heads=4, kv_heads=2, query_len=rows * ranks,
            key_len=keys * ranks, head_dim=head_dim,
        )  # fmt: skip
        exact = attention(q, k, v, is_causal=True)
        with case(rows=rows, keys=keys):
            y, lse = local_ring(
                torch, family, dtype, q, k, v, ranks, is_causal=True, layout="zigzag"
            )
            assert_close(family, dtype, y, exact[0], lse, exact[1])


# Chunks in any order. Half of the rows see no key of one chunk, which is first, last or alone.
@pytest.mark.parametrize("origins", [*permutations(range(3)), (0,), (1,), (2,), (2, 0), (0, 2)])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_steps_in_any_order(torch, family, dtype, head_dim, origins):
    ranks, rank, rows, keys = 3, 1, 768, 384
    q, k, v = torch_qkv(
        "normal", dtype, 7, heads=4, kv_heads=2, query_len=rows * ranks, key_len=keys * ranks,
        head_dim=head_dim,
    )  # fmt: skip
    shards = shards_of(q, k, v, ranks, "zigzag")
    stream = bk.Stream(torch.cuda.current_stream())
    layout = bk.SequenceLayout.ZIGZAG
    desc = descriptor(*shards[0][:2], dtype, is_causal=True, sequence_layout=layout)
    plan = bk.RingAttentionPlan.select(stream, desc, preference(family, dtype))
    mine = rank_arrays(torch, plan, *shards[rank], ranks)
    for number, origin in enumerate(origins):
        plan.step(
            stream, q=shards[rank][0], k=shards[origin][1], v=shards[origin][2], y=mine.y,
            lse=mine.lse, accumulator_scratch=mine.held["accumulator_scratch"], rank=rank,
            origin=origin, world_size=ranks, first=number == 0, last=number == len(origins) - 1,
            follows=number > 0,
        )  # fmt: skip

    def places(length, which):
        return torch.cat(
            [torch.as_tensor(bk.positions(length, r, ranks, sequence_layout=layout)) for r in which]
        ).cuda()

    exact = attention(
        shards[rank][0],
        torch.cat([shards[origin][1] for origin in origins], dim=2),
        torch.cat([shards[origin][2] for origin in origins], dim=2),
        is_causal=True,
        q_positions=places(rows, [rank]),
        k_positions=places(keys, origins),
    )
    assert_close(family, dtype, mine.y, exact[0], mine.lse, exact[1])


# Of the chunks in turn, so that a rank meets keys whose scores are far above or below those before:
# by factors of 2^200 and more between their weights, which f32 cannot hold, and around 2^16.
@pytest.mark.parametrize(
    "growth", [(0.02, 1, 40, 0.3), (40, 0.02, 0.3, 1), (0.5, 1, 2, 3), (0, 0, 30, 0)]
)
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_scores_that_rise_and_fall_along_the_ring(torch, family, dtype, head_dim, growth):
    ranks, rows = len(growth), 200
    q, k, v = torch_qkv(
        "normal", dtype, 5, heads=4, kv_heads=2, query_len=ranks * rows, head_dim=head_dim
    )
    for chunk, factor in zip(k.split(rows, dim=2), growth, strict=True):
        chunk.mul_(factor)
    score = max_score(*(x.double().cpu().numpy() for x in (q, k)), None)
    for is_causal in (False, True):
        exact = attention(q, k, v, is_causal=is_causal)
        for layout in LAYOUTS if is_causal else LAYOUTS[:1]:
            y, lse = local_ring(
                torch, family, dtype, q, k, v, ranks, is_causal=is_causal, layout=layout
            )
            assert_close(family, dtype, y, exact[0], lse, exact[1], score=score)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS[:3])
def test_staged_and_in_place_give_the_same_bits(torch, family, dtype, head_dim, ranks):
    q, k, v = torch_qkv("normal", dtype, 0, heads=2, query_len=96 * ranks, head_dim=head_dim)
    results = [
        local_ring(
            torch, family, dtype, q, k, v, ranks, is_causal=True, layout="zigzag", staged=staged
        )
        for staged in (False, True)
    ]
    assert same_bits(torch, results[0][0], results[1][0])
    assert same_bits(torch, results[0][1], results[1][1])


@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_one_rank_gives_the_bits_of_flash_sdpa(torch, family, dtype, head_dim):
    q, k, v = torch_qkv("normal", dtype, 1, heads=4, kv_heads=2, query_len=200, head_dim=head_dim)
    stream = bk.Stream(torch.cuda.current_stream())
    desc = bk.FlashSdpaDescriptor(
        1, 4, 200, 200, head_dim, None, True, bk.ElementKind.parse(dtype), num_kv_heads=2
    )
    plan = bk.FlashSdpaPlan.select(stream, desc, preference(family, dtype))
    y = torch.empty_like(q)
    lse_dtype = torch.float64 if dtype == "f64" else torch.float32
    lse = torch.empty(q.shape[:3], dtype=lse_dtype, device=q.device)
    plan.run(stream, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse))
    ring_y, ring_lse = local_ring(torch, family, dtype, q, k, v, 1, is_causal=True)
    assert same_bits(torch, y, ring_y) and same_bits(torch, lse, ring_lse)


@pytest.mark.parametrize("ranks", [2, 5])
def test_threads_and_one_thread_give_the_same_bits(torch, ranks):
    q, k, v = torch_qkv("normal", "bf16", 2, heads=2, query_len=128 * ranks, head_dim=64)
    together, _ = local_ring(torch, "sm80", "bf16", q, k, v, ranks, is_causal=True)

    shards = shards_of(q, k, v, ranks, "contiguous")
    desc = descriptor(*shards[0][:2], "bf16", is_causal=True)
    streams = [torch.cuda.Stream() for _ in range(ranks)]
    plans = [
        bk.RingAttentionPlan.select(bk.Stream(s), desc, preference("sm80", "bf16")) for s in streams
    ]
    arrays = [rank_arrays(torch, p, *s, ranks) for p, s in zip(plans, shards, strict=True)]
    torch.cuda.synchronize()
    ring = bk.LocalCommunicator.ring(ranks, device=0, timeout=30.0)
    failures = []

    def drive(rank):
        try:
            torch.cuda.set_device(0)
            plans[rank].run(bk.Stream(streams[rank]), ring.ranks[rank], arrays[rank].args)
        except bk.errors.BaracudaError as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert not failures
    apart = bk.unshard([a.y for a in arrays])
    assert same_bits(torch, apart, together)


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_100_runs_give_the_same_bits(torch, family, dtype, head_dim, ranks):
    q, k, v = torch_qkv("normal", dtype, 3, heads=4, query_len=256 * ranks, head_dim=head_dim)
    shards = shards_of(q, k, v, ranks, "zigzag")
    layout = bk.SequenceLayout.ZIGZAG
    desc = descriptor(*shards[0][:2], dtype, is_causal=True, sequence_layout=layout)
    stream = bk.Stream(torch.cuda.current_stream())
    plan = bk.RingAttentionPlan.select(stream, desc, preference(family, dtype))
    assert plan.precision_guarantee.deterministic
    arrays = [rank_arrays(torch, plan, *shard, ranks) for shard in shards]
    ring = bk.LocalCommunicator.ring(ranks, device=0)
    first = None
    for _ in range(100):
        for rank in arrays:
            rank.y.zero_()
            rank.lse.zero_()
        ring.run_all(stream, [plan] * ranks, [rank.args for rank in arrays])
        bits = [x for rank in arrays for x in (rank.y, rank.lse)]
        if first is None:
            first = [x.clone() for x in bits]
        assert all(same_bits(torch, a, b) for a, b in zip(first, bits, strict=True))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_16_bit_error_does_not_grow_with_the_ring(torch, dtype, is_causal):
    q, k, v = torch_qkv("normal", dtype, 4, heads=8, query_len=2048, head_dim=128)
    exact, _ = attention(q, k, v, is_causal=is_causal)
    for family in ("sm90a", "sm80", "simt"):
        ratios = []
        for ranks in (1, 2, 4, 8):
            y, _ = local_ring(
                torch, family, dtype, q, k, v, ranks, is_causal=is_causal, layout="zigzag"
            )
            ratios.append(rms_over_rounding(y, exact, dtype))
        assert all(ratio <= 1.02 * ratios[0] for ratio in ratios), (family, ratios)


@pytest.mark.parametrize("distribution", ["normal", "outliers"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("family", ["sm90a", "sm80"])
def test_as_exact_as_cudnn(torch, family, dtype, distribution):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = torch_qkv(distribution, dtype, 5, heads=8, query_len=4096, head_dim=128)
    exact, _ = attention(q, k, v)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    limit = 1.05 * rms_over_rounding(theirs, exact, dtype)
    for ranks in (1, 8):
        ours, _ = local_ring(torch, family, dtype, q, k, v, ranks)
        assert rms_over_rounding(ours, exact, dtype) <= limit, f"{ranks} ranks"


@pytest.mark.parametrize("ranks", [1, 3])
def test_k_and_v_in_any_dense_order(torch, ranks):
    """K and V in place are sent in their own order: [B,S,H,D] gives the bits of [B,H,S,D]."""
    q, k, v = torch_qkv("normal", "bf16", 6, heads=4, kv_heads=2, query_len=64 * ranks, head_dim=64)
    expected, _ = local_ring(torch, "sm80", "bf16", q, k, v, ranks, is_causal=True)
    shards = [
        (a, b.transpose(1, 2).contiguous().transpose(1, 2), c)
        for a, b, c in shards_of(q, k, v, ranks, "contiguous")
    ]
    stream = bk.Stream(torch.cuda.current_stream())
    desc = descriptor(*shards[0][:2], "bf16", is_causal=True)
    plan = bk.RingAttentionPlan.select(stream, desc, preference("sm80", "bf16"))
    arrays = [rank_arrays(torch, plan, *shard, ranks) for shard in shards]
    ring = bk.LocalCommunicator.ring(ranks, device=0)
    ring.run_all(stream, [plan] * ranks, [rank.args for rank in arrays])
    assert same_bits(torch, bk.unshard([rank.y for rank in arrays]), expected)


@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_steps_by_hand_give_the_bits_of_run(torch, family, dtype, head_dim):
    """plan.step in the ring's order, for callers who send K and V themselves."""
    ranks = 4
    q, k, v = torch_qkv("normal", dtype, 7, heads=2, query_len=80 * ranks, head_dim=head_dim)
    expected, _ = local_ring(torch, family, dtype, q, k, v, ranks)
    shards = shards_of(q, k, v, ranks, "contiguous")
    stream = bk.Stream(torch.cuda.current_stream())
    plan = bk.RingAttentionPlan.select(
        stream, descriptor(*shards[0][:2], dtype), preference(family, dtype)
    )
    for rank in range(ranks):
        arrays = rank_arrays(torch, plan, *shards[rank], ranks)
        for number in range(ranks):
            origin = (rank - number) % ranks
            plan.step(
                stream,
                q=shards[rank][0],
                k=shards[origin][1],
                v=shards[origin][2],
                y=arrays.y,
                lse=arrays.lse,
                accumulator_scratch=arrays.held["accumulator_scratch"],
                rank=rank,
                origin=origin,
                world_size=ranks,
                first=number == 0,
                last=number == ranks - 1,
            )
        assert same_bits(torch, arrays.y, bk.shard(expected, ranks)[rank])


@pytest.mark.parametrize("rows", [1024, 3168])  # the narrow and the wide tile of sm90a
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_steps_that_follow_others_give_the_same_bits(torch, family, dtype, head_dim, rows):
    """follows=True lets a step begin while the previous one ends; the state is poisoned before."""
    ranks = 4
    q, k, v = torch_qkv("normal", dtype, 8, heads=8, query_len=rows * ranks, head_dim=head_dim)
    shards = shards_of(q, k, v, ranks, "contiguous")
    stream = bk.Stream(torch.cuda.current_stream())
    plan = bk.RingAttentionPlan.select(
        stream, descriptor(*shards[0][:2], dtype), preference(family, dtype)
    )
    arrays = rank_arrays(torch, plan, *shards[0], ranks)
    state = arrays.held["accumulator_scratch"]

    def run(follows: bool):
        state.fill_(0xFF)  # NaN in every format
        arrays.y.fill_(float("nan"))
        for number in range(ranks):
            plan.step(
                stream,
                q=shards[0][0],
                k=shards[-number][1],
                v=shards[-number][2],
                y=arrays.y,
                lse=arrays.lse,
                accumulator_scratch=state,
                rank=0,
                origin=-number % ranks,
                world_size=ranks,
                first=number == 0,
                last=number == ranks - 1,
                follows=follows and number > 0,
            )
        return arrays.y.clone()

    expected = run(False)
    exact = attention(q[:, :, :rows], k, v)
    assert_close(family, dtype, expected, exact[0], arrays.lse, exact[1])
    assert all(same_bits(torch, run(True), expected) for _ in range(20))
