"""The PyTorch adapter on a GPU: NCCL ranks that share the card, CUDA graphs, memory, host time."""

import statistics

import pytest
from helpers.host_time import microseconds
from helpers.rank_pool import RankPool

from baracuda_kernels.testing import TOLERANCES

from .conftest import WORKER
from .test_torch import LAYOUTS, TASK
from .test_torch_gradients import MODULES
from .test_torch_gradients import TASK as GRADIENTS

pytestmark = [pytest.mark.gpu, pytest.mark.framework("torch")]

BF16 = TASK | {"dtype": "bfloat16", "rows": 96, "kv_heads": 2, "head_dim": 64}
STEP = GRADIENTS | {"dtype": "bfloat16", "rows": 96, "head_dim": 64}


@pytest.fixture(scope="module", params=[2, 4])
def nccl_ranks(request, torch):
    ranks = RankPool(request.param, WORKER, backend="nccl")
    yield ranks
    ranks.close(cleanly=True)


def check(pool, **task):
    tolerance = TOLERANCES["sm80", "bf16"]
    for answer in pool.run(BF16 | task, seconds=120):
        assert answer["relative"] <= tolerance.relative, answer
        assert answer["lse"] <= 1e-4, answer


@pytest.mark.multi_rank
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_nccl_ranks_equal_one_process(nccl_ranks, layout, is_causal):
    for tensor_layout in ("bhsd", "bshd"):
        check(nccl_ranks, layout=layout, is_causal=is_causal, tensor_layout=tensor_layout)


@pytest.mark.multi_rank
@pytest.mark.parametrize("mode", ["inference", "inductor"])
def test_nccl_ranks_in_other_modes(nccl_ranks, mode):
    check(nccl_ranks, mode=mode)


@pytest.mark.multi_rank
def test_the_communicator_is_the_groups(nccl_ranks):
    check(nccl_ranks)
    assert not any(a["owned"] for a in nccl_ranks.run({"do": "communicator"}))


@pytest.mark.multi_rank
@pytest.mark.parametrize("what", ["rows", "kv_heads", "dtype", "layout", "order"])
def test_nccl_ranks_that_differ_all_get_a_typed_error(nccl_ranks, what):
    task = {"do": "differing", "what": what, "odd_rank": 1, "by": "ring_attention"}
    for answer in nccl_ranks.run(task, seconds=120):
        assert answer["error"] == "InvalidProblemError" and "rank 1" in answer["message"], answer
    check(nccl_ranks)


@pytest.mark.multi_rank
def test_nccl_ranks_in_a_cuda_graph(nccl_ranks):
    for answer in nccl_ranks.run(BF16 | {"do": "graph"}, seconds=120):
        assert answer["same"] == [True, True]


@pytest.mark.multi_rank
def test_reserved_memory_stays_as_after_the_first_call(nccl_ranks):
    for answer in nccl_ranks.run(BF16 | {"do": "steady", "calls": 20}, seconds=120):
        assert len(set(answer["reserved"])) == 1, answer


@pytest.mark.multi_rank
@pytest.mark.framework("transformers")
@pytest.mark.parametrize("by", ["register", "context_parallel"])
@pytest.mark.parametrize("model", ["llama", "qwen3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_a_model_on_nccl_ranks(nccl_ranks, model, by, dtype, tolerance):
    task = {"do": "logits", "dtype": dtype, "model": model, "by": by, "use_cache": True}
    for layout in LAYOUTS:
        for answer in nccl_ranks.run(task | {"layout": layout}, seconds=120):
            assert answer["off"] <= tolerance, (layout, answer)


def check_step(pool, tolerance=2**-7, **task):
    for answer in pool.run(STEP | task, seconds=120):
        assert max(answer[name] for name in ("dq", "dk", "dv")) <= tolerance, answer
    return answer


@pytest.mark.multi_rank
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_of_nccl_ranks_equal_one_process(nccl_ranks, layout, is_causal):
    for head_dim, tensor_layout in ((64, "bhsd"), (128, "bshd"), (80, "bhsd")):
        check_step(
            nccl_ranks,
            layout=layout,
            is_causal=is_causal,
            head_dim=head_dim,
            tensor_layout=tensor_layout,
        )
    check_step(nccl_ranks, 1e-5, dtype="float32", layout=layout, is_causal=is_causal)


@pytest.mark.multi_rank
@pytest.mark.parametrize("dy", ["expanded", "strided"])
def test_gradients_of_nccl_ranks_in_other_forms(nccl_ranks, dy):
    check_step(nccl_ranks, dy=dy)
    check_step(nccl_ranks, dy=dy, lse=False)


@pytest.mark.multi_rank
@pytest.mark.parametrize("mode", ["inductor", "checkpoint", "selective", "inductor+checkpoint"])
def test_gradients_of_nccl_ranks_in_other_modes(nccl_ranks, mode):
    check_step(nccl_ranks, mode=mode)


@pytest.mark.multi_rank
def test_gradients_of_nccl_ranks_under_autocast(nccl_ranks):
    answer = check_step(nccl_ranks, 2**-6, autocast=True, dtype="float32")
    assert answer["dtypes"] == ["torch.float32"] * 3


@pytest.mark.multi_rank
def test_a_step_of_nccl_ranks_in_a_cuda_graph(nccl_ranks):
    for answer in nccl_ranks.run(STEP | {"do": "gradient_graph"}, seconds=120):
        assert answer["off"] <= 2**-8, answer


@pytest.mark.multi_rank
def test_steps_of_nccl_ranks_in_inductors_cuda_graphs(nccl_ranks):
    task = {"do": "inductor_graphs", "rows": 96, "steps": 5, "world_size": nccl_ranks.world_size}
    for answer in nccl_ranks.run(task, seconds=240):
        assert answer["recorded"] and answer["different"] == task["steps"], answer
        assert answer["off"] <= 2e-2, answer


@pytest.mark.multi_rank
def test_gradients_on_another_stream(nccl_ranks):
    for answer in nccl_ranks.run(STEP | {"do": "gradients_of_another_stream"}, seconds=120):
        assert answer["off"] <= 2**-8, answer


@pytest.mark.multi_rank
def test_reserved_memory_stays_as_after_the_first_step(nccl_ranks):
    for answer in nccl_ranks.run(STEP | {"do": "steady_gradients", "calls": 12}, seconds=120):
        assert len(set(answer["reserved"][1:])) == 1, answer


@pytest.mark.multi_rank
def test_deterministic_gradients(nccl_ranks):
    for answer in nccl_ranks.run(STEP | {"do": "deterministic_gradients"}, seconds=120):
        assert answer["same"] and answer["guarantees"] and all(answer["guarantees"]), answer


@pytest.mark.multi_rank
@pytest.mark.parametrize("module", MODULES)
def test_modules_train_on_nccl_ranks(nccl_ranks, module):
    task = {"do": "train_module", "module": module, "mode": "eager", "backward": "outside"}
    for answer in nccl_ranks.run(task, seconds=120):
        assert not answer["error"] and answer["off"] <= 1e-4, answer
    # Autograd's own thread computes the layer anew, and finds the context.
    task |= {"mode": "checkpoint", "backward": "inside"}
    for answer in nccl_ranks.run(task, seconds=120):
        if answer["error"] == "UnsupportedError":  # this torch hands nothing on to its threads
            assert "does not know its context_parallel" in answer["message"], answer
        else:
            assert not answer["error"] and answer["off"] <= 1e-4, answer


@pytest.fixture
def one_cuda_rank(torch, one_rank):
    torch.cuda.set_device(0)
    return one_rank


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_capture_needs_an_earlier_call(torch, one_cuda_rank):
    from baracuda_kernels.errors import InvalidProblemError
    from baracuda_kernels.interop.torch import ring_attention

    q, k, v = torch.randn(3, 1, 2, 64, 64, dtype=torch.bfloat16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    match = "call it once before the capture"
    with pytest.raises(InvalidProblemError, match=match), torch.cuda.graph(graph):
        ring_attention(q, k, v)


def test_one_rank_in_a_cuda_graph_and_steady(torch, one_cuda_rank):
    from baracuda_kernels.interop.torch import ring_attention

    q, k, v = torch.randn(3, 1, 2, 512, 64, dtype=torch.bfloat16, device="cuda")
    y = ring_attention(q, k, v, is_causal=True)
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved()
    for _ in range(20):
        y = ring_attention(q, k, v, is_causal=True)
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == reserved
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ring_attention(q, k, v, is_causal=True)
    q.normal_()
    graph.replay()
    y = ring_attention(q, k, v, is_causal=True)
    torch.cuda.synchronize()
    assert torch.equal(captured, y)


def test_opcheck_on_the_device(torch, one_cuda_rank):
    q, k, v = torch.randn(3, 1, 4, 64, 64, dtype=torch.bfloat16, device="cuda")
    op = torch.ops.baracuda.ring_attention.default
    torch.library.opcheck(op, (q, k[:, :2], v[:, :2], "", True, None, "zigzag"))


def test_opcheck_of_gradients_on_the_device(torch, one_cuda_rank):
    ops = torch.ops.baracuda
    q, k, v = torch.randn(3, 1, 4, 64, 64, dtype=torch.bfloat16, device="cuda")
    k, v = k[:, :2], v[:, :2]
    y, lse = ops.ring_attention(q, k, v, "", True, None, "zigzag")
    gradient = (
        torch.randn_like(y),
        torch.randn_like(lse),
        q,
        k,
        v,
        y,
        lse,
        "",
        True,
        None,
        "zigzag",
    )
    # Not deterministic, and opcheck compares two calls bit by bit only for schema and aliases.
    torch.library.opcheck(
        ops.ring_attention_backward, gradient, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # torch begins with such a one
def test_inductors_cuda_graphs(torch, one_cuda_rank):
    from baracuda_kernels.interop.torch import clear_cache, ring_attention

    def loss(q, k, v):
        return ring_attention(q * 2, k, v, is_causal=True).float().sin().sum()

    leaves = [
        torch.randn(1, 4, 128, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        for _ in range(3)
    ]
    compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
    # The problem's first call is a compiled one: what it leaves in a cache is not of the graphs' pool.
    clear_cache()
    for _ in range(4):
        found = torch.autograd.grad(compiled(*leaves), leaves)
        exact = torch.autograd.grad(loss(*leaves), leaves)
        for one, other in zip(found, exact, strict=True):
            torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_first_step_is_not_captured(torch, one_cuda_rank):
    from baracuda_kernels.errors import InvalidProblemError
    from baracuda_kernels.interop.torch import ring_attention

    q = torch.randn(1, 3, 72, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    with torch.no_grad():
        ring_attention(q, q, q)  # the forward is known, the backward is not
    graph = torch.cuda.CUDAGraph()
    match = "call it once before the capture"
    with pytest.raises(InvalidProblemError, match=match), torch.cuda.graph(graph):
        ring_attention(q, q, q)


def test_tensors_on_the_host_and_on_the_device(torch, one_cuda_rank):
    from baracuda_kernels.errors import InvalidProblemError
    from baracuda_kernels.interop.torch import ring_attention

    q, k, v = torch.randn(3, 1, 2, 64, 64)
    with pytest.raises(InvalidProblemError, match="must lie on one device"):
        ring_attention(q.cuda(), k, v)


def test_host_time_is_near_that_of_sdpa(torch, one_cuda_rank):
    from baracuda_kernels.interop.torch import ring_attention

    # Small enough that the GPU keeps up and the launch queue never fills.
    q, k, v = torch.randn(3, 1, 2, 64, 64, dtype=torch.bfloat16, device="cuda")
    calls = {
        "ours": lambda: ring_attention(q, k, v),
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
    }
    for call in calls.values():
        call()
    rounds = [
        {name: microseconds(torch, call, 200) for name, call in calls.items()} for _ in range(15)
    ]
    ratio = statistics.median(r["ours"] / r["sdpa"] for r in rounds)
    assert ratio <= 1.5, f"{ratio:.2f} times the host time of SDPA: {rounds[-1]} us"
