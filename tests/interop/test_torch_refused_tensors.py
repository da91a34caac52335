"""Tensors that the PyTorch adapter refuses: with tangents, of inference mode, of other kinds."""

import pytest

from baracuda_kernels.errors import InvalidProblemError, UnsupportedError

pytestmark = pytest.mark.framework("torch")


@pytest.fixture
def qkv(torch, one_rank):
    return list(torch.randn(3, 1, 4, 8, 16))


@pytest.fixture
def ring_attention(torch):
    from baracuda_kernels.interop.torch import ring_attention

    return ring_attention


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("call", ["ring_attention", "shard", "unshard"])
def test_tangents_that_only_the_operators_see(torch, one_rank, call):
    """Compiled and exported code met no check: the derivative was 0."""
    from baracuda_kernels.interop import torch as adapter

    op = getattr(torch.ops.baracuda, call)
    q = torch.randn(1, 4, 8, 16)
    options = (
        (q, q, "", False, None, "contiguous") if call == "ring_attention" else (2, "", "zigzag")
    )
    with pytest.raises(UnsupportedError, match=f"{call}: got a tensor that has a tangent"):
        torch.func.jvp(lambda x: op(x, *options), (q,), (q,))

    def dual(x):
        with torch.autograd.forward_ad.dual_level():
            x = torch.autograd.forward_ad.make_dual(x, x)
            rest = (q, q) if call == "ring_attention" else (2,)
            return torch.autograd.forward_ad.unpack_dual(getattr(adapter, call)(x, *rest)).primal

    with pytest.raises(UnsupportedError, match="has a tangent"):
        torch.compile(dual, backend="aot_eager")(q)


def test_a_tangent_of_a_gradient(torch, ring_attention, qkv):
    from baracuda_kernels.interop.torch import shard

    q, k, v = qkv
    q.requires_grad_()
    for y in (ring_attention(q, k, v), shard(q, 2)):
        with torch.autograd.forward_ad.dual_level():
            dy = torch.autograd.forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
            with pytest.raises(UnsupportedError, match="has a tangent"):
                torch.autograd.grad(y, q, dy)


def test_operands_of_inference_mode(torch, ring_attention, qkv):
    with torch.inference_mode():
        k = qkv[1].clone()
    q, _, v = qkv
    assert ring_attention(q, k, v).shape == q.shape
    with pytest.raises(InvalidProblemError, match="k: got a tensor made in inference mode"):
        ring_attention(q.requires_grad_(), k, v)


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_tensors_of_other_kinds(torch, ring_attention, qkv):
    from torch.distributed.tensor import DTensor, Replicate

    from baracuda_kernels.interop.torch import context_parallel, shard, unshard

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    q, k, v = qkv
    distributed = DTensor.from_local(k, mesh, [Replicate()])
    with context_parallel(), pytest.raises(UnsupportedError, match="k: got a DTensor"):
        torch.nn.functional.scaled_dot_product_attention(q, distributed, v)
    with pytest.raises(UnsupportedError, match=r"k: got a DTensor, .*k\.to_local\(\)"):
        ring_attention(q, distributed, v)
    nested = torch.nested.nested_tensor([torch.ones(3, 4)], layout=torch.jagged)
    packed = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)
    for x, kind in ((distributed, "a DTensor"), (nested, "a nested"), (packed, "a quantized")):
        for call in (shard, unshard):
            with pytest.raises(UnsupportedError, match=f"x: got {kind}"):
                call(x, 0)
    with pytest.raises(UnsupportedError, match="x: got layout torch.sparse_coo"):
        unshard(torch.eye(4).to_sparse(), 0)
