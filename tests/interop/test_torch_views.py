"""Views of PyTorch tensors: which tensors have no memory, or other values in it than they show."""

import numpy as np
import pytest

import baracuda_kernels as bk

pytestmark = [
    pytest.mark.framework("torch"),
    # torch warns of an export of a FakeTensor, once in a process.
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]

B, H, S, D = 1, 1, 8, 16


def fake(torch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        whole = torch.ones(B, H, S + 1, D)
        return whole, whole[:, :, 1:]


def zero(torch):
    """As forward-mode AD and autograd make them."""
    whole = torch._efficientzerotensor((B, H, S + 1, D))
    return whole, whole[:, :, 1:]


def freed(torch):
    """As sharded trainers free a parameter between its uses."""
    whole = torch.ones(B, H, S + 1, D)
    part = whole[:, :, 1:]
    whole.untyped_storage().resize_(0)
    return whole, part


@pytest.mark.parametrize("make", [fake, zero, freed])
def test_tensors_without_memory(torch, make):
    """The address of the whole is 0, that of a part is its offset."""
    good = [np.zeros((B, H, S, D), np.float32) for _ in range(3)]
    for x in make(torch):
        with pytest.raises(bk.InvalidProblemError, match="tensor: got .*, must be memory"):
            bk.TensorRef(x)
        with pytest.raises(bk.InvalidProblemError, match="k: got .*, must be memory"):
            bk.RingAttentionArgs(q=good[0], k=x, v=good[1], y=good[2])


def test_a_part_of_a_tensor_with_memory(torch):
    x = torch.arange(24.0).reshape(2, 3, 4)
    for part in (x[1:], x[:, 1:, 2:], x[1, 2, 3:], x[2:]):
        assert np.array_equal(np.asarray(bk.TensorRef(part)), part.numpy())


@pytest.mark.parametrize("make", [
    lambda torch: torch.empty(2, 3, device="meta"),
    lambda torch: torch.ones(3, 3).to_mkldnn(),
    lambda torch: torch.eye(3).to_sparse(),
    lambda torch: torch.zeros(3, dtype=torch.complex64).conj(),
], ids=["meta", "mkldnn", "sparse", "conjugate"])  # fmt: skip
def test_tensors_that_are_no_memory(torch, make):
    with pytest.raises(bk.InvalidProblemError, match="^tensor: .*Tensor"):
        bk.TensorRef(make(torch))


def test_a_tensor_within_vmap(torch):
    def view(x):
        with pytest.raises(bk.InvalidProblemError, match="^tensor: .*Tensor"):
            bk.TensorRef(x)
        return x

    torch.vmap(view)(torch.ones(2, 3))


def test_the_negative_bit(torch):
    x = torch.arange(1.0, 5.0)
    imaginary = torch.complex(x, x).conj().imag
    for view in (torch._neg_view(x), imaginary):
        with pytest.raises(bk.InvalidProblemError, match="negative bit.*resolve_neg"):
            bk.TensorRef(view)
        assert np.array_equal(np.asarray(bk.TensorRef(view.resolve_neg())), -x.numpy())
    plan = bk.FlashSdpaPlan.select(bk.FlashSdpaDescriptor(B, H, S, S, D), bk.Stream.host())
    q, k, v, y = torch.ones(4, B, H, S, D)
    with pytest.raises(bk.InvalidProblemError, match="^v: got a Tensor with the negative bit"):
        plan.run(bk.Stream.host(), bk.FlashSdpaArgs(q=q, k=k, v=torch._neg_view(v), y=y))
