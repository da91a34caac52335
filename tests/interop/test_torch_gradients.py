"""Gradients of the PyTorch adapter over gloo, against one process's own."""

import pytest
from helpers.rank_pool import RankPool

from .conftest import WORKER

pytestmark = pytest.mark.framework("torch")

LAYOUTS = ["contiguous", "zigzag", "striped"]
TASK = {
    "do": "gradients",
    "dtype": "float32",
    "rows": 13,
    "heads": 4,
    "kv_heads": 2,
    "layout": "zigzag",
    "is_causal": True,
    "tensor_layout": "bhsd",
    "dy": "dense",
    "lse": True,
    "mode": "eager",
}
MODULES = [
    "scaled_dot_product_attention",
    "nn.MultiheadAttention",
    "nn.TransformerEncoderLayer",
]


def check(pool, tolerance=4e-6, **task):
    for answer in pool.run(TASK | task, seconds=240):
        for name in ("dq", "dk", "dv"):
            assert answer[name] <= tolerance, (name, answer)
    return answer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("tensor_layout", ["bhsd", "bshd"])
def test_four_ranks_equal_one_process(gloo_ranks, layout, is_causal, tensor_layout):
    for kv_heads in (4, 1):
        check(
            gloo_ranks,
            layout=layout,
            is_causal=is_causal,
            kv_heads=kv_heads,
            tensor_layout=tensor_layout,
        )


@pytest.mark.parametrize("dy", ["expanded", "strided"])
@pytest.mark.parametrize("lse", [False, True])
def test_gradients_in_other_forms(gloo_ranks, dy, lse):
    check(gloo_ranks, dy=dy, lse=lse)


def test_other_dtypes(gloo_ranks):
    for dtype, tolerance in (("float64", 1e-12), ("bfloat16", 2**-7), ("float16", 2**-10)):
        answer = check(gloo_ranks, tolerance, dtype=dtype)
        assert answer["dtypes"] == [f"torch.{dtype}"] * 3


@pytest.mark.parametrize("mode", ["aot_eager", "inductor"])
def test_compiled(gloo_ranks, mode):
    for tensor_layout in ("bhsd", "bshd"):
        check(gloo_ranks, mode=mode, tensor_layout=tensor_layout)


@pytest.mark.parametrize("compiled", ["", "aot_eager+", "inductor+"])
@pytest.mark.parametrize("mode", ["checkpoint", "selective"])
def test_activation_checkpointing(gloo_ranks, compiled, mode):
    check(gloo_ranks, mode=f"{compiled}{mode}")


@pytest.mark.parametrize("mode", ["eager", "aot_eager"])
def test_autocast(gloo_ranks, mode):
    answer = check(gloo_ranks, 2**-6, autocast=True, mode=mode)
    assert answer["dtypes"] == ["torch.float32"] * 3


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gradcheck(gloo_ranks, ranks):
    layout = LAYOUTS[ranks - 1]
    answers = gloo_ranks.run({"do": "gradcheck", "ranks": ranks, "layout": layout}, seconds=240)
    assert [a.get("checked", False) for a in answers] == [r < ranks for r in range(4)]


def test_ranks_whose_losses_use_other_outputs(gloo_ranks):
    assert all(a["off"] <= 1e-12 for a in gloo_ranks.run({"do": "unlike_losses"}))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("mode", ["eager", "aot_eager"])
def test_modules_train_within_context_parallel(gloo_ranks, module, mode):
    task = {"do": "train_module", "module": module, "mode": mode, "backward": "outside"}
    for answer in gloo_ranks.run(task, seconds=240):
        assert not answer["error"] and answer["off"] <= 4e-6, answer
        assert answer["gradients"] >= 4


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("mode", ["checkpoint", "reentrant"])
def test_checkpointed_modules_within_context_parallel(gloo_ranks, module, mode):
    task = {"do": "train_module", "module": module, "mode": mode}
    for answer in gloo_ranks.run(task | {"backward": "inside"}, seconds=240):
        assert not answer["error"] and answer["off"] <= 4e-6, answer
    # Attention that is computed again outside of the context would see only the local rows.
    for answer in gloo_ranks.run(task | {"backward": "outside"}, seconds=240):
        assert answer["error"] in ("CheckpointError", "UnsupportedError"), answer


def test_fsdp_beside_a_ring(gloo_ranks):
    for answer in gloo_ranks.run({"do": "fsdp"}, seconds=240):
        assert answer["off"] <= 4e-6, answer


def test_one_rank_that_goes_backward(gloo_ranks):
    for answer in gloo_ranks.run({"do": "one_goes_backward", "odd_rank": 2}):
        assert answer["error"] == "InvalidProblemError", answer
        assert "direction: got" in answer["message"], answer
    check(gloo_ranks)  # the ring still works


@pytest.mark.parametrize("what", ["orders", "calls", "one call less"])
def test_backwards_of_different_calls(gloo_ranks, what):
    """Calls of equal problems, whose sums would be paired wrongly."""
    task = {"do": "backwards_in_other_orders", "odd_rank": 2, "what": what}
    for answer in gloo_ranks.run(task, seconds=60):
        assert answer["error"] == "InvalidProblemError", answer
        assert "rank 2: backward: got the gradients of forward call" in answer["message"], answer
    check(gloo_ranks)  # the ring still works


@pytest.mark.parametrize("step", [0, 1])  # later, some ranks have their sums already
def test_one_rank_that_fails_to_launch(gloo_ranks, step):
    """It ends the connections of its group, so the others do not wait for gloo's half an hour."""
    answers = gloo_ranks.run({"do": "one_fails_to_launch", "odd_rank": 1, "step": step}, seconds=60)
    for rank, answer in enumerate(answers):
        assert answer["error"] == ("CudaError" if rank == 1 else "CommunicatorError"), answers
        assert answer["seconds"] < 10, answers
    check(gloo_ranks)  # other groups still work


def test_one_rank_that_compiles_anew(gloo_ranks):
    task = {"do": "one_recompiles", "odd_rank": 1}
    assert all(a["same"] for a in gloo_ranks.run(task, seconds=240))


def test_a_rank_that_dies_in_backward(torch):
    ranks = RankPool(7, WORKER, backend="gloo")
    try:
        ranks.run({"do": "groups_of_a_victim"})
        for trial, where in enumerate(("before", 1, 2, 3, "gathering")):
            victim = 2 + trial
            task = {"do": "die_in_backward", "trial": trial, "where": where}
            answers = ranks.run(task, ranks=[0, 1, victim], victim=victim, seconds=60)
            for answer in answers:
                assert answer["error"] == "CommunicatorError", (where, answer)
                assert answer["seconds"] < 30, answer
    finally:
        ranks.close()
