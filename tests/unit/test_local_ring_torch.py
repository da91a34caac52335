"""`run_local_ring` of PyTorch's tensors refuses what a transform, a trace or a layout would hide."""

import pytest

import baracuda_kernels as bk

torch = pytest.importorskip("torch", reason="capability: torch is installed")


def tensors():
    return torch.randn(3, 1, 2, 32, 16, generator=torch.Generator().manual_seed(0))


def ring(q, k, v, **more):
    return bk.run_local_ring(q, k, v, 2, **more)


def with_tangent(name):
    """The call with a tangent on one operand."""
    from torch.autograd import forward_ad

    q, k, v = tensors()
    given = {"q": q, "k": k, "v": v, "dy": torch.ones_like(q), "dlse": torch.ones(1, 2, 32)}
    with forward_ad.dual_level():
        given[name] = forward_ad.make_dual(given[name], torch.ones_like(given[name]))
        return ring(**given)


def transformed(transform):
    q, k, v = tensors()
    return transform(lambda x: ring(x, k, v)[0])(q)


def traced():
    from torch.fx.experimental.proxy_tensor import make_fx

    return transformed(make_fx)


def linearized():
    q, k, v = tensors()
    return torch.func.linearize(lambda x: ring(x, k, v)[0], q)


def under_a_mode():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Recorder():
        return ring(*tensors())


def scripted():
    q, k, v = tensors()
    return torch.jit.trace(lambda x: ring(x, k, v)[0], (q,), check_trace=False)


FUNC = "run_local_ring: got a call within a torch.func transform"
TRACE = "run_local_ring: got a call under "


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *((lambda name=name: with_tangent(name), "q, k, v, dy, dlse: .* has a tangent")
          for name in ("q", "k", "v", "dy", "dlse")),
        (lambda: transformed(torch.func.vmap), FUNC),
        (lambda: transformed(lambda f: lambda x: torch.func.jvp(f, (x,), (x,))), FUNC),
        (lambda: transformed(lambda f: torch.func.grad(lambda x: f(x).sum())), FUNC),
        (lambda: transformed(torch.func.functionalize), FUNC),
        (linearized, "has a tangent"),
        (traced, TRACE + "ProxyTorchDispatchMode"),
        (under_a_mode, TRACE + "Recorder"),
        (scripted, TRACE + "torch.jit.trace"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_would_miss_the_call_is_refused(call, says):
    """Else a derivative is 0, a tangent is lost, or a trace holds memory that nobody wrote."""
    with pytest.raises(bk.UnsupportedError, match=says):
        call()


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("kind", ["sparse", "mkldnn", "nested", "meta"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_that_is_no_memory_beside_the_others(kind, name):
    given = dict(zip("qkv", tensors(), strict=True))
    x = given[name]
    given[name] = {
        "sparse": x.to_sparse,
        "mkldnn": x.to_mkldnn,
        "nested": lambda: torch.nested.nested_tensor(list(x)),
        "meta": lambda: x.to("meta"),
    }[kind]()
    with pytest.raises(bk.InvalidProblemError, match=r"^[qkv]: got .*, must be"):
        ring(**given)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")  # by PyTorch 2.11
def test_what_only_looks_odd_is_computed():
    q, k, v = tensors()
    y, _ = ring(-q, k, v)
    assert torch.equal(ring(torch._neg_view(q), k, v)[0], y)
    assert torch.equal(ring(torch.complex(k, q).conj().imag, k, v)[0], y)
    with torch.inference_mode():
        assert torch.equal(ring(-q, k.clone(), v)[0], y)
    compiled = torch.compile(lambda x: ring(-x, k, v)[0], backend="eager")
    assert torch.equal(compiled(q), y)
