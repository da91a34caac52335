"""Eager calls skip PyTorch's dispatcher, unless a mode, a profiler or a tensor needs it."""

import gc
import weakref

import pytest

pytestmark = pytest.mark.framework("torch")

NAME = "baracuda::ring_attention"


@pytest.fixture
def operands(torch, one_rank):
    return torch.randn(3, 1, 2, 16, 8).unbind()


@pytest.fixture
def dispatched(monkeypatch):
    """The calls that reach the operator."""
    from baracuda_kernels.interop.torch import _operator

    calls, real = [], _operator.forward_op

    def counted(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(_operator, "forward_op", counted)
    return calls


def answer(torch, q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.mark.parametrize("gradient", [False, True])
def test_plain_tensors_do_not_reach_it(torch, operands, dispatched, gradient):
    from baracuda_kernels.interop.torch import ring_attention

    q, k, v = (torch.nn.Parameter(x, requires_grad=gradient) for x in operands)
    torch.testing.assert_close(ring_attention(q, k, v), answer(torch, q, k, v))
    with torch.inference_mode():
        torch.testing.assert_close(ring_attention(q + 0, k + 0, v + 0), answer(torch, q, k, v))
    assert not dispatched


def test_a_cleared_cache_frees_its_plans_at_once(torch, operands):
    """Not in a later garbage collection: on CUDA that would free device memory, maybe in a capture."""
    from baracuda_kernels.interop.torch import _ring, clear_cache, ring_attention

    gc.disable()
    try:
        q, k, v = operands
        ring_attention(q.requires_grad_(), k, v).sum().backward()
        ring = _ring.find_ring("", q.device)
        (form,) = (weakref.ref(form) for _, form in ring._plans.values())
        assert form() is not None and ring._gradients._plans
        clear_cache()
        assert form() is None and not ring._gradients._plans
    finally:
        gc.enable()


@pytest.mark.parametrize("gradient", [False, True])
def test_modes_see_every_call(torch, operands, gradient):
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from baracuda_kernels.interop.torch import ring_attention

    seen = []

    class OfDispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class OfFunctions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    q, k, v = (x.clone().requires_grad_(gradient) for x in operands)
    for mode in (OfDispatch, OfFunctions):
        seen.clear()
        with mode():
            ring_attention(q, k, v)
        assert seen.count("baracuda.ring_attention.default") == 1, (mode, seen)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_profiler_sees_every_call(torch, operands, gradient):
    from baracuda_kernels.interop.torch import ring_attention

    q, k, v = (x.clone().requires_grad_(gradient) for x in operands)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ring_attention(q, k, v)
    assert [e.count for e in profile.key_averages() if e.key == NAME] == [1]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_tensor_whose_memory_holds_its_negative(torch, operands, dispatched, which):
    from baracuda_kernels.interop.torch import ring_attention

    inputs = list(operands)
    inputs[which] = torch.complex(torch.zeros_like(inputs[which]), -inputs[which]).conj().imag
    assert inputs[which].is_neg() and inputs[which].stride(-1) == 2
    torch.testing.assert_close(inputs[which], operands[which])
    torch.testing.assert_close(ring_attention(*inputs), answer(torch, *operands))
    assert len(dispatched) == 1


def test_a_tensor_without_memory_that_stands_for_zeros(torch, operands, dispatched):
    from baracuda_kernels.interop.torch import ring_attention

    q, k, v = operands
    zeros = torch._efficientzerotensor(v.shape)
    torch.testing.assert_close(ring_attention(q, k, zeros), torch.zeros_like(q))
    assert len(dispatched) == 1


def test_tensors_that_have_no_memory(torch, operands):
    from torch._subclasses import FakeTensorMode

    from baracuda_kernels.interop.torch import ring_attention

    y, lse = ring_attention(*(x.to("meta") for x in operands), return_lse=True)
    assert y.device.type == lse.device.type == "meta" and lse.shape == y.shape[:3]
    with FakeTensorMode() as mode:
        y = ring_attention(*(mode.from_tensor(x) for x in operands))
    assert y.shape == operands[0].shape and type(y) is not torch.Tensor


def test_a_subclass_sees_its_own_calls(torch, operands):
    from baracuda_kernels.interop.torch import ring_attention

    seen = []

    class Logged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    q, k, v = operands
    y = ring_attention(q, k, v.as_subclass(Logged))
    torch.testing.assert_close(y.as_subclass(torch.Tensor), answer(torch, q, k, v))
    assert seen.count("baracuda.ring_attention.default") == 1


@pytest.mark.parametrize("by", ["eager", "operator"])
def test_a_graph_that_nobody_walks_is_freed(torch, operands, by):
    from baracuda_kernels.interop.torch import ring_attention

    q, k, v = (x.clone().requires_grad_() * 1 for x in operands)
    if by == "eager":
        y, lse = ring_attention(q, k, v, return_lse=True)
    else:
        op = torch.ops.baracuda.ring_attention.default
        y, lse = op(q, k, v, "", False, None, "contiguous", True)
    kept = [weakref.ref(x) for x in (q, k, v)]
    del q, k, v, y, lse
    gc.collect()
    assert [x() for x in kept] == [None] * 3
