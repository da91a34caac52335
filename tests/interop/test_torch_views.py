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
