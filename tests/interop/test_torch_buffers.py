"""The receive buffers of the PyTorch adapter's rings, on stand-ins for CUDA memory."""

import contextlib

import pytest

import baracuda_kernels as bk
from baracuda_kernels.errors import CommunicatorError, CudaError

pytestmark = pytest.mark.framework("torch")


class Memory:
    """Stands in for `DeviceBuffer`: the device has room for 100 bytes."""

    left = 100

    def __init__(self, nbytes, device):
        if nbytes > Memory.left:
            raise CudaError(2, "cudaMalloc", "out of memory")
        Memory.left -= nbytes
        self.nbytes = nbytes


class Comm:
    """Stands in for a communicator by peer copies; writes down the collective calls."""

    state, world_size = "healthy", 3

    def __init__(self, calls):
        self.calls, self.failure = calls, None

    def register(self, buffer):
        self.calls.append(("register", buffer.nbytes))
        if self.failure:
            raise self.failure

    def refuse(self, error):
        self.calls.append(("refuse", error))


@pytest.fixture
def ring(torch, one_rank, monkeypatch):
    """A ring on stand-ins, and the calls of its communicator."""
    from baracuda_kernels.interop.torch import _buffers, _ring

    monkeypatch.setattr(Memory, "left", 100)
    monkeypatch.setattr(_buffers, "DeviceBuffer", Memory)
    monkeypatch.setattr(_ring, "Communicator", Comm)
    real = torch.as_tensor
    monkeypatch.setattr(
        torch,
        "as_tensor",
        lambda x, **options: (
            torch.zeros(x.nbytes, dtype=torch.uint8) if isinstance(x, Memory) else real(x, **options)
        ),
    )
    calls = []
    ring = _ring.Ring(one_rank, torch.device("cpu"), Comm(calls))
    ring.buffers.by_peer = True
    return ring, calls


def test_memory_serves_a_smaller_call_of_another_dtype(torch, ring):
    ring, _ = ring
    q = torch.zeros(1)
    assert ring._make_room({"kv_scratch_a": torch.empty(60, dtype=torch.uint8)})
    own = ring.buffers._own["kv_scratch_a"]
    for dtype, elements in ((torch.float64, 6), (torch.float64, 7), (torch.float16, 29)):
        x = ring.buffers.of("kv_scratch_a", elements, q, dtype)
        assert (x.dtype, x.shape, x.data_ptr()) == (dtype, (elements,), own.data_ptr())
    for elements in (0, 8):
        x = ring.buffers.of("kv_scratch_a", elements, q, torch.float64)
        assert x.shape == (elements,) and x.data_ptr() != own.data_ptr()


def test_only_what_is_too_small_is_registered_anew(torch, ring):
    ring, calls = ring
    a, b = torch.empty(20, dtype=torch.uint8), torch.empty(30, dtype=torch.uint8)
    assert ring._make_room({"a": a, "b": b})
    assert not ring._make_room({"a": a, "b": b})
    assert ring._make_room({"a": b, "b": a})
    assert calls == [("register", 20), ("register", 30), ("register", 30)]


def test_a_rank_out_of_memory_tells_the_others_before_any_registers(torch, ring):
    ring, calls = ring
    ring._args["an address"] = "arguments in memory that is not registered"
    travel = {name: torch.empty(60, dtype=torch.uint8) for name in ("a", "b")}
    with pytest.raises(CudaError, match="cudaMalloc: out of memory"):
        ring._make_room(travel)
    ((what, told),) = calls
    assert what == "refuse" and type(told) is CommunicatorError
    assert str(told) == "ring_attention: CudaError: cudaMalloc: out of memory (cudaError 2)"
    assert not ring._args and not ring.buffers._own


def test_a_registration_that_fails_leaves_no_address(torch, ring):
    ring, calls = ring
    ring._args["an address"] = "arguments in memory that is not registered"
    ring.comm.failure = CommunicatorError("rank 1: CudaError: cudaMalloc: out of memory")
    with contextlib.suppress(CommunicatorError):
        ring._make_room({"a": torch.empty(60, dtype=torch.uint8)})
    assert calls == [("register", 60)] and not ring._args and not ring.buffers._own


@pytest.mark.parametrize(
    ("kv_heads", "by_peer", "given"), [(1, False, False), (4, False, True), (1, True, True)]
)
def test_gradients_get_the_second_buffer_of_k_and_v(torch, ring, kv_heads, by_peer, given):
    """Where the plan needs it, and where it is registered anyway."""
    ring, _ = ring
    ring.buffers.by_peer = by_peer
    desc = bk.RingAttentionDescriptor(
        1, 4, 8, 8, 16, element=bk.ElementKind.F32, num_kv_heads=kv_heads
    )
    plan = bk.RingAttentionBackwardPlan.select(desc, bk.Stream.host())
    travel = ring._gradients._travel(plan, torch.empty(0))
    assert set(travel) - {"kv_scratch_b"} == {"kv_scratch_a", "kv_gradient_scratch"}
    assert ("kv_scratch_b" in travel) == given
    least = plan.least_kv_gradient_scratch_bytes(with_kv_scratch_b=given)
    assert travel["kv_gradient_scratch"].nbytes == least
