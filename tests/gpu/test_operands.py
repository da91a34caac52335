"""Operands and streams of every library on the machine, read and written in place."""

import importlib.util

import ml_dtypes
import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels.registry import Architecture
from baracuda_kernels.testing import assert_close, attention, preference, torch_qkv

pytestmark = pytest.mark.gpu

SHAPE = {"heads": 4, "kv_heads": 2, "query_len": 96, "key_len": 96, "head_dim": 64}


def needs(module):
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"capability: {module}"
    )


def plan_on(stream, dtype="bf16"):
    descriptor = bk.FlashSdpaDescriptor(1, 4, 96, 96, 64, is_causal=True, element=dtype,
                                        num_kv_heads=2)
    return bk.FlashSdpaPlan.select(stream, descriptor)


@pytest.fixture
def problem(torch):
    q, k, v = torch_qkv("normal", "bf16", 0, **SHAPE)
    return (q, k, v), attention(q, k, v, is_causal=True)


def test_streams_of_pytorch(torch, problem):
    (q, k, v), exact = problem
    side = torch.cuda.Stream()
    for source in (side, torch.cuda.current_stream(), side.cuda_stream, 0, None):
        y, lse = torch.full_like(q, float("nan")), torch.empty(1, 4, 96, device="cuda")
        stream = bk.Stream(source)
        assert stream.device == torch.cuda.current_device()
        torch.cuda.synchronize()
        plan_on(stream).run(source, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse))
        stream.synchronize()
        assert_close("sm80", "bf16", y, exact[0], lse, exact[1])


def test_strides_and_slices_of_a_packed_projection(torch, problem):
    (q, k, v), exact = problem
    packed = torch.empty(1, 96, 8 + 4, 64, dtype=q.dtype, device="cuda")
    views = packed.transpose(1, 2).split([4, 2, 2, 4], 1)
    for view, x in zip(views, (q, k, v), strict=False):
        view.copy_(x)
    lse = torch.empty(1, 4, 96, device="cuda")
    stream = bk.Stream(torch.cuda.current_stream())
    plan_on(stream).run(stream, bk.FlashSdpaArgs(q=views[0], k=views[1], v=views[2], y=views[3],
                                                 lse=lse))
    assert_close("sm80", "bf16", views[3], exact[0], lse, exact[1])
    assert torch.equal(views[1], k)


def test_raw_pointers(torch, problem):
    (q, k, v), exact = problem
    y, lse = torch.full_like(q, float("nan")), torch.empty(1, 4, 96, device="cuda")

    def raw(x):
        view = bk.TensorRef(x.data_ptr(), x.shape, x.stride(), bk.TensorRef(x).element)
        assert view.device == x.device.index
        return view

    stream = bk.Stream(torch.cuda.current_stream().cuda_stream)
    args = bk.FlashSdpaArgs(**{n: raw(x) for n, x in zip("qkvy", (q, k, v, y), strict=True)},
                            lse=raw(lse))
    plan_on(stream).run(stream, args)
    assert_close("sm80", "bf16", y, exact[0], lse, exact[1])


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("query_len", [100, 1000])
def test_outputs_of_any_strides(torch, head_dim, query_len):
    """y within a larger tensor, whose other elements stay, and y from its last row to its first:
    TMA cannot store the latter."""
    q, k, v = torch_qkv("normal", "bf16", 0, heads=3, query_len=query_len, head_dim=head_dim)
    exact = attention(q, k, v, is_causal=True)
    stream = bk.Stream(torch.cuda.current_stream())
    descriptor = bk.FlashSdpaDescriptor(1, 3, query_len, query_len, head_dim, is_causal=True,
                                        element="bf16")
    hopper = Architecture.here().compute_capability == 90
    plan = bk.FlashSdpaPlan.select(stream, descriptor,
                                   preference("sm90a" if hopper else "sm80", "bf16"))
    room = torch.full((1, query_len + 40, 5, head_dim + 64), 7.0, dtype=q.dtype, device="cuda")
    inside = room[:, 17 : 17 + query_len, 1:4, 32 : 32 + head_dim]
    y, lse = inside.transpose(1, 2), torch.empty(1, 3, query_len, device="cuda")
    plan.run(stream, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse))
    assert_close(plan.family, "bf16", y, exact[0], lse, exact[1])
    inside.fill_(7.0)
    assert (room == 7.0).all()

    backwards, one = torch.full_like(q, float("nan")), bk.TensorRef(q).element
    last = backwards.data_ptr() + (query_len - 1) * head_dim * q.element_size()
    strides = (backwards.stride(0), backwards.stride(1), -head_dim, 1)
    args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=bk.TensorRef(last, q.shape, strides, one), lse=lse)
    plan.run(stream, args)
    assert_close(plan.family, "bf16", backwards.flip(2), exact[0], lse, exact[1])


def test_a_tensor_that_wants_gradients_is_refused(torch, problem):
    (q, k, v), _ = problem
    with pytest.raises(bk.InvalidProblemError, match="q: "):
        bk.FlashSdpaArgs(q=q.clone().requires_grad_(), k=k, v=v, y=torch.empty_like(q))


@needs("cupy")
def test_cupy(torch, problem):
    import cupy

    (q, k, v), exact = problem
    host = [x.cpu().half().numpy() for x in (q, k, v)]
    q, k, v = (cupy.asarray(x) for x in host)
    exact = attention(*host, is_causal=True)
    side = cupy.cuda.Stream(non_blocking=True)
    for stream in (side, cupy.cuda.get_current_stream()):
        y, lse = cupy.full_like(q, cupy.nan), cupy.empty((1, 4, 96), cupy.float32)
        cupy.cuda.Device().synchronize()
        plan_on(bk.Stream(stream), "f16").run(
            stream, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse))
        stream.synchronize()
        assert_close("sm80", "f16", cupy.asnumpy(y), exact[0], cupy.asnumpy(lse), exact[1])


class OnlyCudaArrayInterface:
    def __init__(self, x, readonly=False):
        self.x = x
        interface = dict(x.__cuda_array_interface__)
        interface["data"] = (interface["data"][0], readonly)
        self.__cuda_array_interface__ = interface


def test_cuda_array_interface(torch, problem):
    host = [x.half() for x in problem[0]]
    exact = attention(*host, is_causal=True)
    q, k, v = (OnlyCudaArrayInterface(x, readonly=True) for x in host)
    y = torch.full_like(host[0], float("nan"))
    lse = torch.empty(1, 4, 96, device="cuda")
    stream = bk.Stream(torch.cuda.current_stream())
    plan_on(stream, "f16").run(stream, bk.FlashSdpaArgs(
        q=q, k=k, v=v, y=OnlyCudaArrayInterface(y), lse=OnlyCudaArrayInterface(lse)))
    assert_close("sm80", "f16", y, exact[0], lse, exact[1])
    with pytest.raises(bk.InvalidProblemError, match="read-only"):
        plan_on(stream, "f16").run(stream, bk.FlashSdpaArgs(q=q, k=k, v=v, y=q))


@needs("jax")
def test_jax_arrays_are_read_through_dlpack(torch, problem):
    """In another process, since JAX and torch would share the card's memory."""
    import subprocess
    import sys

    script = """
import numpy as np, jax, jax.numpy as jnp, torch, baracuda_kernels as bk
x = [jax.random.normal(jax.random.key(i), (1, 2, 64, 64), jnp.bfloat16) for i in range(3)]
jax.block_until_ready(x)
y = torch.full((1, 2, 64, 64), float("nan"), dtype=torch.bfloat16, device="cuda")
torch.cuda.synchronize()
stream = bk.Stream(torch.cuda.current_stream())
plan = bk.FlashSdpaPlan.select(stream, bk.FlashSdpaDescriptor(1, 2, 64, 64, 64, element="BF16"))
plan.run(stream, bk.FlashSdpaArgs(q=x[0], k=x[1], v=x[2], y=y))
exact = jax.nn.dot_product_attention(*(a.swapaxes(1, 2).astype(jnp.float32) for a in x))
exact = np.asarray(exact.swapaxes(1, 2))
error = np.linalg.norm(y.float().cpu().numpy() - exact) / np.linalg.norm(exact)
assert error < 6e-3, error
"""
    import os

    subprocess.run([sys.executable, "-c", script], check=True, timeout=120,
                   env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"})


@needs("cuda.core")
def test_cuda_core_buffers_and_streams(torch, problem):
    """cuda.core's memory comes as bytes; the plan knows the shape."""
    try:
        from cuda.core import Device
    except ImportError:  # before cuda.core 0.5
        from cuda.core.experimental import Device

    (q, k, v), exact = problem
    device = Device(torch.cuda.current_device())
    device.set_current()
    stream = device.create_stream()

    def buffer_of(x):
        buffer = device.allocate(x.numel() * x.element_size(), stream=stream)
        source = bk.TensorRef(x)
        torch.cuda.synchronize()
        stream.sync()
        view = torch.as_tensor(bk.DeviceSlice(int(buffer.handle), source.nbytes, "U8"),
                               device="cuda")
        view.copy_(x.contiguous().view(torch.uint8).reshape(-1))
        torch.cuda.synchronize()
        return buffer

    buffers = [buffer_of(x) for x in (q, k, v)]
    out = buffer_of(torch.full_like(q, float("nan")))
    lse = torch.empty(1, 4, 96, device="cuda")
    plan_on(bk.Stream(stream)).run(stream, bk.FlashSdpaArgs(
        q=buffers[0], k=buffers[1], v=buffers[2], y=out, lse=lse))
    stream.sync()
    y = torch.as_tensor(bk.DeviceSlice(int(out.handle), q.numel() * 2, "U8"), device="cuda")
    y = y.view(torch.bfloat16).reshape(q.shape)
    assert_close("sm80", "bf16", y, exact[0], lse, exact[1])


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_a_thread_that_has_not_touched_the_gpu_yet(torch, dtype):
    """An engine's worker may make its first CUDA call through a plan."""
    import threading

    q, k, v = torch_qkv("normal", dtype, 1, **SHAPE)
    exact = attention(q, k, v, is_causal=True)
    y, lse = torch.full_like(q, float("nan")), torch.empty(1, 4, 96, device="cuda")
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    stream = bk.Stream(side.cuda_stream, device=q.device.index)
    plan, args = plan_on(stream, dtype), bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse)
    failures = []

    def work():
        try:
            plan.run(stream, args)
        except bk.BaracudaError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    side.synchronize()
    assert failures == []
    assert_close("sm80" if dtype == "bf16" else "simt", dtype, y, exact[0], lse, exact[1])


def test_memory_on_another_device_is_named(torch, problem):
    (q, k, v), _ = problem
    stream = bk.Stream(torch.cuda.current_stream())
    elsewhere = bk.TensorRef(q.data_ptr(), q.shape, None, "BF16", device=q.device.index + 1)
    with pytest.raises(bk.InvalidProblemError, match="cuda:"):
        plan_on(stream).run(stream, bk.FlashSdpaArgs(q=elsewhere, k=k, v=v, y=torch.empty_like(q)))
    host = np.zeros(q.shape, ml_dtypes.bfloat16)
    with pytest.raises(bk.InvalidProblemError, match="the host"):
        plan_on(stream).run(stream, bk.FlashSdpaArgs(q=host, k=k, v=v, y=torch.empty_like(q)))
