"""The PyTorch adapter over gloo, against one process's own scaled_dot_product_attention."""

import pytest

pytestmark = pytest.mark.framework("torch")

LAYOUTS = ["contiguous", "zigzag", "striped"]
TASK = {
    "do": "attend",
    "dtype": "float32",
    "rows": 23,
    "heads": 4,
    "kv_heads": 4,
    "layout": "zigzag",
    "is_causal": True,
    "tensor_layout": "bhsd",
    "mode": "eager",
}


def check(pool, **task):
    for answer in pool.run(TASK | task, seconds=180):
        assert answer["relative"] <= 2e-6, answer
        assert answer["lse"] <= 4e-6, answer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tensor_layout", ["bhsd", "bshd"])
def test_four_ranks_equal_one_process(gloo_ranks, layout, is_causal, kv_heads, tensor_layout):
    check(
        gloo_ranks,
        layout=layout,
        is_causal=is_causal,
        kv_heads=kv_heads,
        tensor_layout=tensor_layout,
    )


@pytest.mark.parametrize("mode", ["inference", "aot_eager", "inductor"])
def test_other_modes_give_the_same(gloo_ranks, mode):
    for tensor_layout in ("bhsd", "bshd"):
        check(gloo_ranks, mode=mode, tensor_layout=tensor_layout, kv_heads=2)


def test_other_dtypes(gloo_ranks):
    for dtype, tolerance in (("float64", 1e-12), ("bfloat16", 2**-8), ("float16", 2**-11)):
        for answer in gloo_ranks.run(TASK | {"dtype": dtype, "layout": "striped"}):
            assert answer["dtype"] == f"torch.{dtype}"
            assert answer["relative"] <= 1.02 * tolerance, answer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["eager", "aot_eager"])
def test_sdpa_within_context_parallel(gloo_ranks, layout, mode):
    task = TASK | {"do": "patched", "layout": layout, "mode": mode, "kv_heads": 2}
    for answer in gloo_ranks.run(task, seconds=180):
        assert answer["relative"] <= 2e-6 and answer["outside"] <= 2e-6, answer


def test_rings_over_parts_of_the_ranks(gloo_ranks):
    assert all(a["relative"] <= 2e-6 for a in gloo_ranks.run({"do": "sub_group"}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unshard_undoes_shard(gloo_ranks, layout):
    dtypes = ["bool", "uint8", "int16", "uint16", "uint32", "uint64", "float16", "bfloat16",
              "complex64", "float8_e4m3fn"]  # fmt: skip
    answers = gloo_ranks.run({"do": "deal", "layout": layout, "dtypes": dtypes})
    assert all(a["same"] and a["named"] for a in answers)
    assert sorted(row for a in answers for row in a["rows"]) == list(range(24))


@pytest.mark.parametrize(
    ("what", "field"),
    [
        ("rows", "query_len"),
        ("kv_heads", "num_kv_heads"),
        ("dtype", "element"),
        ("layout", "sequence_layout"),
        ("order", "order of k's dimensions"),
    ],
)
@pytest.mark.parametrize("by", ["ring_attention", "context_parallel"])
def test_ranks_that_differ_all_get_a_typed_error(gloo_ranks, what, field, by):
    # The others have called their problem before, and have compared it.
    agreed = gloo_ranks.run({"do": "differing", "what": what, "odd_rank": None, "by": by})
    assert not any(a["error"] for a in agreed)
    for answer in gloo_ranks.run({"do": "differing", "what": what, "odd_rank": 2, "by": by}):
        assert answer["error"] == "InvalidProblemError", answer
        assert "rank 2" in answer["message"] and field in answer["message"]
    check(gloo_ranks)  # the ring still works


@pytest.mark.parametrize("by", ["unshard", "the backward of shard"])
@pytest.mark.parametrize("what", ["rows", "dim", "bfloat16", "float64", "layout"])
def test_ranks_that_gather_other_rows(gloo_ranks, what, by):
    task = {"do": "differing_shards", "what": what, "by": by}
    for answer in gloo_ranks.run({**task, "odd_rank": None}):
        assert not answer["error"], answer
    for rank, answer in enumerate(gloo_ranks.run({**task, "odd_rank": 2}, seconds=20)):
        assert answer["error"] == "InvalidProblemError", answer
        assert f"on rank {rank}, must be the same on every rank" in answer["message"], answer
    if what == "layout":
        assert "the contiguous layout on rank 3" in answer["message"]
    if what in ("bfloat16", "float64"):
        assert f"torch.{'float16' if what == 'bfloat16' else 'float32'} and" in answer["message"]


@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(torch, one_rank, gradients):
    ops = torch.ops.baracuda
    plain = torch.randn(3, 2, 4, 8, 16)
    bshd = torch.randn(3, 2, 8, 4, 16).transpose(2, 3)
    for q, k, v in (plain, bshd, (plain[0], plain[1, :, :2], plain[2, :, :2])):
        y, lse = ops.ring_attention(q, k, v, "", True, None, "zigzag")
        q, k, v = (x.detach().requires_grad_(gradients) for x in (q, k, v))
        torch.library.opcheck(ops.ring_attention, (q, k, v, "", True, None, "zigzag", gradients))
        for dy, dlse in ((torch.randn_like(y), None), (y[:1].expand_as(y), torch.randn_like(lse))):
            gradient = (
                dy,
                dlse,
                *(x.detach() for x in (q, k, v)),
                y,
                lse,
                "",
                True,
                None,
                "zigzag",
            )
            torch.library.opcheck(ops.ring_attention_backward, gradient)
        for op in (ops.shard, ops.unshard):
            torch.library.opcheck(op, (q, 2, "", "striped"))


def test_operands_that_are_not_dense_are_copied(torch, one_rank):
    from baracuda_kernels.interop.torch import ring_attention

    sdpa = torch.nn.functional.scaled_dot_product_attention
    packed = torch.randn(1, 8, 3, 4, 16)  # [B, S, qkv, H, D]
    columns = torch.randn(3, 1, 4, 16, 8).transpose(3, 4)  # D is not the last in memory
    odd = torch.randn(3, 4 * 8 * 16 + 1)[:, 1:].view(3, 1, 4, 8, 16)
    wide = torch.randn(3, 1, 1, 8, 16).expand(3, 1, 4, 8, 16)
    for q, k, v in (packed.permute(2, 0, 3, 1, 4), columns, odd, wide):
        y = ring_attention(q, k, v, is_causal=True)
        torch.testing.assert_close(y, sdpa(q, k, v, is_causal=True))


def test_dense_operands_are_not_copied(torch, one_rank):
    from baracuda_kernels.interop.torch import _problem

    for order in ((0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 2, 3), (2, 0, 1, 3)):
        inverse = [order.index(i) for i in range(4)]
        x = torch.randn([(2, 4, 8, 16)[i] for i in order]).permute(inverse)
        assert x.shape == (2, 4, 8, 16)
        assert _problem.sendable(x) is x
        assert _problem.order(x) == (() if order == (0, 1, 2, 3) else order)
    assert not _problem.sendable(torch.randn(2, 4, 8, 32)[..., :16]).data_ptr() % 16


def test_a_new_group_of_an_old_name(torch):
    from baracuda_kernels.interop.torch import ring_attention

    dist = torch.distributed
    for _ in range(2):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        q, k, v = torch.randn(3, 1, 2, 8, 16)
        assert ring_attention(q, k, v).shape == q.shape
        dist.destroy_process_group()
