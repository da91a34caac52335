"""What the PyTorch adapter refuses, by typed errors that name the argument."""

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


def test_mixed_dtypes(ring_attention, qkv):
    q, k, v = qkv
    with pytest.raises(InvalidProblemError, match=r"q, k, v: got torch.float32, torch.float64"):
        ring_attention(q, k.double(), v)


def test_a_dtype_without_kernels(torch, ring_attention, qkv):
    with pytest.raises(UnsupportedError, match=r"q: got torch.int32, must be one of torch.float16"):
        ring_attention(*(x.to(torch.int32) for x in qkv))


def test_tensors_on_different_devices(ring_attention, qkv):
    q, k, v = qkv
    with pytest.raises(InvalidProblemError, match="must be on one device"):
        ring_attention(q, k.to("meta"), v)
    shapes_alone = ring_attention(q.to("meta"), k.to("meta"), v.to("meta"))
    assert shapes_alone.shape == q.shape and shapes_alone.device.type == "meta"


def test_a_device_that_the_group_cannot_serve(torch, ring_attention):
    # Stands in for a group that has only NCCL, which this machine may not have.
    from baracuda_kernels.interop.torch import _process_group

    class CudaOnly:
        def rank(self):
            return 0

        def size(self):
            return 1

        def _get_backend(self, device):
            raise RuntimeError(f"no backend for {device}")

    with pytest.raises(InvalidProblemError, match="group: got one that sends no CPU tensors"):
        _process_group.GroupTransport(CudaOnly())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), "q: got 3 dimensions, must have 4"),
        (lambda q, k, v: (q, k, v[:, :, :4]), r"v: got shape \(1, 4, 4, 16\).*must be k's"),
        (lambda q, k, v: (q, k[..., :8], v[..., :8]), "k: got shape .*head_dim of q"),
        (lambda q, k, v: (q, k[:, :3], v[:, :3]), "num_kv_heads: got 3, must divide"),
    ],
)
def test_shapes(ring_attention, qkv, change, message):
    with pytest.raises(InvalidProblemError, match=message):
        ring_attention(*change(*qkv))


def test_waiting(torch, one_rank):
    from baracuda_kernels.interop.torch import synchronize

    synchronize()
    synchronize(one_rank, 5.0)
    for timeout in (0, -1.0, float("nan"), "1", True):
        with pytest.raises(InvalidProblemError, match="timeout: got"):
            synchronize(timeout=timeout)
    with pytest.raises(InvalidProblemError, match="group: got int"):
        synchronize(3)


def test_waiting_without_a_process_group(torch):
    from baracuda_kernels.interop.torch import synchronize

    with pytest.raises(InvalidProblemError, match=r"torch\.distributed must be initialised"):
        synchronize()


def test_options(ring_attention, qkv):
    with pytest.raises(InvalidProblemError, match="tensor_layout: got 'sbhd'"):
        ring_attention(*qkv, tensor_layout="sbhd")
    with pytest.raises(InvalidProblemError, match="sequence_layout: got 'spiral'"):
        ring_attention(*qkv, sequence_layout="spiral")
    with pytest.raises(InvalidProblemError, match="scale: got nan"):
        ring_attention(*qkv, scale=float("nan"))


def test_groups(torch, ring_attention, qkv):
    for group in ("0", torch.distributed.GroupMember.NON_GROUP_MEMBER):
        with pytest.raises(InvalidProblemError, match="group: got .* must be a ProcessGroup"):
            ring_attention(*qkv, group)


def test_a_destroyed_group(torch, ring_attention, qkv):
    from baracuda_kernels.interop.torch import context_parallel, position_ids, shard

    gone = torch.distributed.new_group([0])
    ring_attention(*qkv, gone)
    torch.distributed.destroy_process_group(gone)
    with context_parallel(gone):
        attend = torch.nn.functional.scaled_dot_product_attention
        for call in (lambda: ring_attention(*qkv, gone), lambda: attend(*qkv),
                     lambda: shard(qkv[0], 2, gone), lambda: position_ids(4, gone)):  # fmt: skip
            with pytest.raises(InvalidProblemError, match="group: got .*, which is destroyed"):
                call()


@pytest.mark.parametrize("borrow", [False, True])
def test_a_communicator_of_a_group_without_this_process(torch, borrow):
    from baracuda_kernels import Communicator

    dist = torch.distributed
    with pytest.raises(InvalidProblemError, match="group: got none.*call init_process_group"):
        Communicator.from_torch(device=0, borrow=borrow)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        gone = dist.new_group([0])
        dist.destroy_process_group(gone)
        for group in (dist.GroupMember.NON_GROUP_MEMBER, gone, "x", 5):
            with pytest.raises(InvalidProblemError, match="group: got .*, must be a ProcessGroup"):
                Communicator.from_torch(group, device=0, borrow=borrow)
    finally:
        dist.destroy_process_group()


def test_without_a_process_group(torch, ring_attention):
    q, k, v = torch.randn(3, 1, 4, 8, 16)
    with pytest.raises(InvalidProblemError, match="group: .*init_process_group"):
        ring_attention(q, k, v)


def test_a_problem_without_a_backward(torch, ring_attention, qkv, monkeypatch):
    from baracuda_kernels import RingAttentionBackwardPlan
    from baracuda_kernels.interop.torch import _gradients

    class NoBackward(RingAttentionBackwardPlan):
        @staticmethod
        def select(descriptor, stream, preference=None):
            raise UnsupportedError("no kernel has the gradient of this one")

    monkeypatch.setattr(_gradients, "RingAttentionBackwardPlan", NoBackward)
    ring_attention(*qkv)
    for x in qkv:
        leaf = x.clone().requires_grad_()
        operands = [leaf if one is x else one for one in qkv]
        # In the forward call, before a gradient is computed.
        with pytest.raises(UnsupportedError, match="no kernel has the gradient"):
            ring_attention(*operands)
        compiled = torch.compile(lambda *x: ring_attention(*x), backend="aot_eager")
        with pytest.raises(UnsupportedError, match="no kernel has the gradient"):
            compiled(*operands)
        with torch.no_grad():
            assert not ring_attention(*operands).requires_grad


def test_deterministic_algorithms(torch, ring_attention, qkv, monkeypatch):
    from baracuda_kernels.interop.torch import _gradients

    wanted = []
    real = _gradients.RingAttentionBackwardPlan

    class Seen(real):
        @staticmethod
        def select(descriptor, stream, preference=None):
            wanted.append(preference is not None and preference.deterministic)
            if wanted[-1] and descriptor.num_kv_heads == 2:
                raise UnsupportedError("no kernel is deterministic for this one")
            return real.select(descriptor, stream, preference)

    monkeypatch.setattr(_gradients, "RingAttentionBackwardPlan", Seen)
    q, k, v = (x.requires_grad_() for x in qkv)
    try:
        for on in (False, True):
            torch.use_deterministic_algorithms(on)
            ring_attention(q, k, v).sum().backward()
            ring_attention(q, k, v).sum().backward()
        assert wanted == [False, True]
        match = "use_deterministic_algorithms is on, and no kernel is deterministic"
        with pytest.raises(UnsupportedError, match=match):
            ring_attention(q, k[:, :2], v[:, :2])
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="its gradient is not deterministic"):
            ring_attention(q, k[:, :2], v[:, :2]).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("of", ["y", "lse"])
def test_a_second_derivative(torch, ring_attention, qkv, of):
    q, k, v = (x.requires_grad_() for x in qkv)
    y, lse = ring_attention(q, k, v, return_lse=True)
    loss = (y if of == "y" else lse).sin().sum()
    (dq,) = torch.autograd.grad(loss, q, create_graph=True)
    with pytest.raises(UnsupportedError, match="got a call for a second derivative"):
        dq.sum().backward()


def test_an_operand_changed_in_place(torch, ring_attention, qkv):
    q, k, v = qkv
    q.requires_grad_()
    y = ring_attention(q, k, v)
    k.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_derivatives(torch, ring_attention, qkv):
    from baracuda_kernels.interop.torch import shard, unshard

    q, k, v = qkv
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level(), pytest.raises(UnsupportedError, match="has a tangent"):
        ring_attention(q, forward_ad.make_dual(k, k), v)
    with forward_ad.dual_level():
        assert ring_attention(q, k, v).shape == q.shape
    for transform in (
        lambda f: torch.func.jvp(f, (q,), (q,)),
        lambda f: torch.func.grad(lambda x: f(x).sum())(q),
        lambda f: torch.func.vmap(f)(q[None]),
    ):
        with torch.no_grad(), pytest.raises(UnsupportedError, match="torch.func transform"):
            transform(lambda x: ring_attention(x, k, v))
        for call in (shard, unshard):
            with pytest.raises(UnsupportedError, match=f"{call.__name__}: .*torch.func transform"):
                transform(lambda x, call=call: call(x, 2))
    for call in (shard, unshard):
        with forward_ad.dual_level(), pytest.raises(UnsupportedError, match="x: .*has a tangent"):
            call(forward_ad.make_dual(q, q), 2)


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("value", [None, [1.0], "numpy"])
def test_what_is_no_tensor(ring_attention, qkv, argument, value):
    qkv[argument] = qkv[argument].numpy() if value == "numpy" else value
    for layout in ("bhsd", "bshd"):
        with pytest.raises(InvalidProblemError, match=r"[qkv]: got .*, must be a torch.Tensor"):
            ring_attention(*qkv, tensor_layout=layout)


def test_sharding_of_what_is_no_tensor(torch, one_rank):
    from baracuda_kernels.interop.torch import shard, unshard

    x = torch.zeros(2, 4).numpy()
    for call in (shard, unshard):
        with pytest.raises(InvalidProblemError, match="x: got ndarray, must be a torch.Tensor"):
            call(x, 1)


def test_no_sequence_layout(torch, ring_attention, qkv):
    for layout in (None, 3):
        with pytest.raises(InvalidProblemError, match="sequence_layout"):
            ring_attention(*qkv, sequence_layout=layout)


def test_a_device_mesh_is_a_group(torch, ring_attention, qkv):
    from baracuda_kernels.interop.torch import context_parallel, position_ids

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b"))
    torch.testing.assert_close(ring_attention(*qkv, mesh["b"]), ring_attention(*qkv))
    assert position_ids(4, mesh["b"]).tolist() == [0, 1, 2, 3]
    with context_parallel(mesh["a"]):
        torch.nn.functional.scaled_dot_product_attention(*qkv)
    with pytest.raises(InvalidProblemError, match="DeviceMesh of 2 dimensions, must have 1"):
        ring_attention(*qkv, mesh)


def test_sharding(torch, one_rank):
    from baracuda_kernels.interop.torch import position_ids, shard, unshard

    with pytest.raises(InvalidProblemError, match=r"dim: got 3, must be in \[-2, 2\)"):
        shard(torch.zeros(2, 3), 3)
    for call in (shard, unshard):
        for dim in (None, True, 1.0, "1", (0,)):
            with pytest.raises(InvalidProblemError, match="dim: got .*, must be an integer"):
                call(torch.zeros(2, 3), dim)
        with pytest.raises(InvalidProblemError, match="x: got no dimensions"):
            call(torch.tensor(1.0), 0)
    for rows in (-1, 4.0, True, 2**63):
        with pytest.raises(InvalidProblemError, match="rows: got .*, must be an integer from 0"):
            position_ids(rows)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attn_mask": True}, UnsupportedError, "attn_mask: got a tensor of shape"),
        ({"dropout_p": 0.1}, UnsupportedError, "dropout_p: got 0.1, must be 0"),
        ({"dropout_p": -0.1}, UnsupportedError, "dropout_p: got -0.1, must be 0"),
        ({"keys": 12, "is_causal": True}, UnsupportedError, "sharded cache"),
        ({"queries": 1}, UnsupportedError, "sharded cache"),
        ({"kv_heads": 2}, InvalidProblemError, "key: got 2 heads.*enable_gqa"),
        ({"dtype": "float64"}, InvalidProblemError, "q, k, v: got torch.float32, torch.float64"),
        ({"device": "meta"}, InvalidProblemError, "must be on one device"),
    ],
)
def test_what_context_parallel_refuses(torch, one_rank, options, error, message):
    from baracuda_kernels.interop.torch import context_parallel

    sdpa = torch.nn.functional.scaled_dot_product_attention
    options = dict(options)
    q = torch.randn(1, 4, options.pop("queries", 8), 16)
    k, v = torch.randn(2, 1, options.pop("kv_heads", 4), options.pop("keys", 8), 16)
    if "dtype" in options or "device" in options:
        dtype = getattr(torch, options.pop("dtype", "float32"))
        k = k.to(options.pop("device", "cpu"), dtype)
    if options.pop("attn_mask", False):
        options["attn_mask"] = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    with context_parallel(), pytest.raises(error, match=message):
        sdpa(q, k, v, **options)


def test_calls_are_cast_as_autocast_does(torch, ring_attention, one_rank):
    from baracuda_kernels.interop.torch import context_parallel

    sdpa = torch.nn.functional.scaled_dot_product_attention
    q, k, v = torch.randn(3, 1, 4, 8, 16)
    with torch.autocast("cpu", torch.bfloat16), context_parallel():
        calls = [sdpa(q, k.bfloat16(), v), ring_attention(q, k.bfloat16(), v)]
        f64 = ring_attention(q.double(), k.double(), v.double())
        with pytest.raises(UnsupportedError, match=r"q: got torch.int32"):
            ring_attention(*(x.to(torch.int32) for x in (q, k, v)))
        with torch.autocast("cpu", enabled=False):
            assert ring_attention(q, k, v).dtype is torch.float32
    for y in calls:
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(y.float(), sdpa(q, k, v), atol=2e-2, rtol=2e-2)
    assert f64.dtype is torch.float64


def test_a_dtype_is_an_element(torch):
    import numpy as np

    from baracuda_kernels import ElementKind, RingAttentionDescriptor

    for dtype, element in ((torch.bfloat16, ElementKind.BF16), (np.float16, ElementKind.F16)):
        assert RingAttentionDescriptor(1, 1, 8, 8, 16, element=dtype).element is element
    for other in (None, 1.5, torch.strided):
        with pytest.raises(InvalidProblemError, match="element: got"):
            RingAttentionDescriptor(1, 1, 8, 8, 16, element=other)
