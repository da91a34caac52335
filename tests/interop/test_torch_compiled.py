"""Collective calls in compiled code: none is merged, dropped or moved."""

import pytest

import baracuda_kernels as bk

pytestmark = [
    pytest.mark.framework("torch"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


@pytest.fixture
def calls(torch, one_rank, monkeypatch):
    """(direction, scale) of every call, in their order; nothing is compiled before."""
    from torch._functorch import config as autograd_config
    from torch._inductor import config as inductor_config

    from baracuda_kernels.interop.torch._ring import Ring

    found = []
    attend, gradients = Ring.attend, Ring.gradients

    def seen_attend(self, q, k, v, is_causal, scale, *rest):
        found.append(("forward", scale))
        return attend(self, q, k, v, is_causal, scale, *rest)

    def seen_gradients(self, *arguments):
        found.append(("backward", arguments[8]))
        return gradients(self, *arguments)

    monkeypatch.setattr(Ring, "attend", seen_attend)
    monkeypatch.setattr(Ring, "gradients", seen_gradients)
    with (
        inductor_config.patch(fx_graph_cache=False),
        autograd_config.patch(enable_autograd_cache=False),
    ):
        yield found
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition", "inductor"])
def test_calls_are_those_of_eager_code(torch, calls, backend):
    from baracuda_kernels.interop.torch import ring_attention

    def loss(q, k, v):
        first = ring_attention(q, k, v, scale=0.5)
        second = ring_attention(q, k, v, scale=0.5)  # the same call again
        ring_attention(q.detach(), k, v, scale=0.25)  # its result is not used
        return (first.sin() + second.cos()).sum()

    leaves = [torch.randn(1, 2, 8, 16, requires_grad=True) for _ in range(3)]
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for call in (loss, compiled):
        del calls[:]
        call(*leaves).backward()
        assert calls == [("forward", 0.5)] * 2 + [("forward", 0.25)] + [("backward", 0.5)] * 2
    del calls[:]
    with torch.no_grad():
        compiled(*leaves)
    assert len(calls) == 3


def test_calls_keep_their_order(torch, calls):
    from torch._inductor import config

    from baracuda_kernels.interop.torch import ring_attention

    def attend(few, many):
        first = ring_attention(many, many, many, scale=0.1)
        second = ring_attention(many, many, many, scale=0.2)
        # Before the second call, it would free what the first has made.
        third = ring_attention(few, first, first, scale=0.3)
        return second.sin().sum() + third.cos().sum()

    few, many = torch.randn(1, 8, 4, 16), torch.randn(1, 8, 128, 16)
    compiled = torch.compile(attend, fullgraph=True, backend="inductor")
    with torch.no_grad(), config.patch(reorder_for_peak_memory=True):
        compiled(few, many)
    assert calls == [("forward", scale) for scale in (0.1, 0.2, 0.3)]


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_shard_and_unshard_compile(torch, one_rank, layout):
    from baracuda_kernels.interop.torch import ring_attention, shard, unshard

    def whole(q, k, v):
        parts = (shard(x, 2, None, layout) for x in (q, k, v))
        y = ring_attention(*parts, is_causal=True, sequence_layout=layout)
        return unshard(y, 2, None, layout)

    leaves = [torch.randn(1, 2, 8, 16, requires_grad=True) for _ in range(3)]
    found = []
    for call in (whole, torch.compile(whole, fullgraph=True, backend="aot_eager")):
        found.append(torch.autograd.grad(call(*leaves).sin().sum(), leaves))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_kept_for_the_backward(torch, one_rank):
    from baracuda_kernels.interop.torch import ring_attention

    kept = []

    def pack(x):
        kept.append(x)
        return x

    q, k, v = (torch.randn(1, h, 8, 16, requires_grad=True) for h in (4, 2, 2))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y, lse = ring_attention(q, k, v, return_lse=True)
    expected = {x.data_ptr(): x.nbytes for x in (q, k, v, y, lse)}
    assert {x.data_ptr(): x.nbytes for x in kept} == expected
    assert lse.dtype is torch.float32 and len(kept) == 5


@pytest.mark.parametrize("layout", ["zigzag", bk.SequenceLayout.CONTIGUOUS])
def test_positions_in_compiled_code(torch, one_rank, layout):
    from baracuda_kernels.interop.torch import position_ids

    def embedded(x):
        return x + position_ids(x.shape[0], one_rank, layout, device=x.device)

    compiled = torch.compile(embedded, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 6):
        x = torch.arange(rows)
        assert torch.equal(compiled(x), embedded(x)) and compiled(x).dtype == torch.int64
