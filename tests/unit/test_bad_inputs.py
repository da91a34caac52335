"""Every kind of bad operand on the host is a typed error before any work or output."""

import sys

import ml_dtypes
import numpy as np
import pytest

import baracuda_kernels as bk

B, H, HKV, Q, K, D = 1, 4, 2, 8, 8, 16
RANKS = 3
ELEMENT = np.float32
KV = 2 * B * HKV * K * D


def good():
    """Arguments of one rank that a plan accepts; NaN in the outputs."""
    rng = np.random.default_rng()
    return {
        "q": rng.standard_normal((B, H, Q, D), ELEMENT),
        "k": rng.standard_normal((B, HKV, K, D), ELEMENT),
        "v": rng.standard_normal((B, HKV, K, D), ELEMENT),
        "y": np.full((B, H, Q, D), np.nan, ELEMENT),
        "lse": np.full((B, H, Q), np.nan, np.float32),
        "kv_scratch_a": np.zeros(KV, ELEMENT),
        "kv_scratch_b": np.zeros(KV, ELEMENT),
        "accumulator_scratch": np.zeros(B * H * Q * (D + 2) * 4, np.uint8),
    }


def frozen(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def misaligned(array):
    raw = np.zeros(array.nbytes + 8, np.uint8)
    start = 8 - raw.ctypes.data % 8 + 1
    return raw[start % 8 : start % 8 + array.nbytes].view(array.dtype).reshape(array.shape)



Invalid, Misaligned = "InvalidProblemError", "MisalignedOperandError"
Short, Small = "BufferTooSmallError", "WorkspaceTooSmallError"
Unsupported = "UnsupportedError"
# name: (error, argument in the message, good arguments -> bad ones)
BAD = {
    "q None": (Invalid, "q", lambda a: {"q": None}),
    "y None": (Invalid, "y", lambda a: {"y": None}),
    "q no tensor": (Invalid, "q", lambda a: {"q": "q"}),
    "q a list": (Invalid, "q", lambda a: {"q": a["q"].tolist()}),
    "q a bare address": (Invalid, "q", lambda a: {"q": a["q"].ctypes.data}),
    "q on a GPU": (Invalid, "q", lambda a: {"q": bk.TensorRef(4096, a["q"].shape, None, "F32", device=0)}),
    "y on a GPU": (Invalid, "y", lambda a: {"y": bk.TensorRef(4096, a["y"].shape, None, "F32", device=0)}),
    "q float64": (Invalid, "q", lambda a: {"q": a["q"].astype(np.float64)}),
    "q bfloat16": (Invalid, "q", lambda a: {"q": a["q"].astype(ml_dtypes.bfloat16)}),
    "y float16": (Invalid, "y", lambda a: {"y": a["y"].astype(np.float16)}),
    "k integers": (Invalid, "k", lambda a: {"k": a["k"].astype(np.int32)}),
    "v strings": (Unsupported, "v", lambda a: {"v": a["v"].astype("U8")}),
    "q big-endian": (Unsupported, "q", lambda a: {"q": a["q"].astype(">f4")}),
    "lse float64": (Invalid, "lse", lambda a: {"lse": a["lse"].astype(np.float64)}),
    "q masked": (Invalid, "q", lambda a: {"q": np.ma.masked_less(a["q"], 0)}),
    "y masked": (Invalid, "y", lambda a: {"y": np.ma.array(a["y"])}),
    "q 3-D": (Invalid, "q", lambda a: {"q": a["q"][0]}),
    "q 5-D": (Invalid, "q", lambda a: {"q": a["q"][None]}),
    "q a row short": (Invalid, "q", lambda a: {"q": a["q"][:, :, 1:]}),
    "q of half a head": (Invalid, "q", lambda a: {"q": a["q"][..., :8]}),
    "q bytes too short": (Short, "q", lambda a: {"q": a["q"].view(np.uint8).reshape(-1)[:-4]}),
    "y of too few heads": (Invalid, "y", lambda a: {"y": a["y"][:, :2]}),
    "k of query heads": (Invalid, "k", lambda a: {"k": a["k"].repeat(2, 1)}),
    "v a row long": (Invalid, "v", lambda a: {"v": a["v"].repeat(2, 2)}),
    "lse 4-D": (Invalid, "lse", lambda a: {"lse": a["lse"][..., None]}),
    "lse not dense": (Invalid, "lse", lambda a: {"lse": a["lse"].repeat(2, 2)[..., ::2]}),
    "q last dimension strided": (Invalid, "q", lambda a: {"q": a["q"].repeat(2, 3)[..., ::2]}),
    "y last dimension reversed": (Invalid, "y", lambda a: {"y": a["y"][..., ::-1]}),
    "y broadcast onto itself": (
        Invalid, "y",
        lambda a: {"y": np.lib.stride_tricks.as_strided(a["y"], strides=(0, 0, 64, 4))}),
    "q misaligned": (Misaligned, "q", lambda a: {"q": misaligned(a["q"])}),
    "lse misaligned": (Misaligned, "lse", lambda a: {"lse": misaligned(a["lse"])}),
    "scratch misaligned": (
        Misaligned, "kv_scratch_a", lambda a: {"kv_scratch_a": misaligned(a["kv_scratch_a"])}),
    "y read-only": (Invalid, "y", lambda a: {"y": frozen(a["y"])}),
    "lse read-only": (Invalid, "lse", lambda a: {"lse": frozen(a["lse"])}),
    "scratch read-only": (
        Invalid, "kv_scratch_b", lambda a: {"kv_scratch_b": frozen(a["kv_scratch_b"])}),
    "accumulator read-only": (
        Invalid, "accumulator_scratch",
        lambda a: {"accumulator_scratch": frozen(a["accumulator_scratch"])}),
    "k without v": (Invalid, "k, v", lambda a: {"v": None}),
    "v without k": (Invalid, "k, v", lambda a: {"k": None}),
    "k with gaps": (Invalid, "k", lambda a: {"k": a["k"].repeat(2, 2)[:, :, ::2]}),
    "k reversed": (Invalid, "k", lambda a: {"k": a["k"][:, :, ::-1]}),
    "no scratch a": (Invalid, "kv_scratch_a", lambda a: {"kv_scratch_a": None}),
    "no scratch b": (Invalid, "kv_scratch_b", lambda a: {"kv_scratch_b": None}),
    "no accumulator": (
        Invalid, "accumulator_scratch", lambda a: {"accumulator_scratch": None}),
    "scratch a short": (
        Short, "kv_scratch_a", lambda a: {"kv_scratch_a": a["kv_scratch_a"][:-1]}),
    "scratch b short": (
        Short, "kv_scratch_b", lambda a: {"kv_scratch_b": a["kv_scratch_b"][:-1]}),
    "scratch float64": (
        Invalid, "kv_scratch_a", lambda a: {"kv_scratch_a": a["kv_scratch_a"].astype(np.float64)}),
    "scratch strided": (
        Invalid, "kv_scratch_b", lambda a: {"kv_scratch_b": a["kv_scratch_b"].repeat(2)[::2]}),
    "accumulator short": (
        Small, "accumulator_scratch",
        lambda a: {"accumulator_scratch": a["accumulator_scratch"][:-4]}),
    "y is q": (Invalid, "y", lambda a: {"y": a["q"]}),
    "y in scratch": (
        Invalid, "y", lambda a: {"y": a["kv_scratch_b"][: B * H * Q * D].reshape(B, H, Q, D)}),
    "lse in q": (Invalid, "lse", lambda a: {"lse": a["q"].reshape(-1)[: B * H * Q].reshape(B, H, Q)}),
    "one scratch twice": (Invalid, "kv_scratch", lambda a: {"kv_scratch_b": a["kv_scratch_a"]}),
    "k in scratch": (
        Invalid, "kv_scratch_a",
        lambda a: {"k": a["kv_scratch_a"][: B * HKV * K * D].reshape(B, HKV, K, D)}),
    "accumulator in v": (
        Invalid, "accumulator_scratch",
        lambda a: {"v": a["accumulator_scratch"][: KV * 2].view(ELEMENT).reshape(B, HKV, K, D)}),
}


@pytest.fixture(scope="module")
def plan():
    descriptor = bk.RingAttentionDescriptor(B, H, Q, K, D, element="F32", num_kv_heads=HKV)
    return bk.RingAttentionPlan.select(bk.Stream.host(), descriptor)


def test_there_are_enough_kinds():
    assert len(BAD) >= 50


def test_the_good_arguments_are_good(plan):
    plan.can_implement(bk.RingAttentionArgs(**good()), RANKS)


@pytest.mark.filterwarnings("ignore:Numpy has detected")
@pytest.mark.parametrize("kind", BAD)
def test_bad_operand(plan, kind):
    error, argument, mutate = BAD[kind]
    error = getattr(bk, error)
    arguments = good()
    arguments |= mutate(arguments)
    ring = bk.LocalCommunicator.ring(RANKS, timeout=5)
    outputs = [a for a in (arguments["y"], arguments["lse"]) if isinstance(a, np.ndarray)]
    before = [a.copy() for a in outputs]

    def attempt():
        for call in (
            lambda: plan.can_implement(bk.RingAttentionArgs(**arguments), RANKS),
            lambda: plan.can_implement(bk.RingAttentionArgs(**arguments), comm=ring[0]),
            lambda: plan.run(bk.Stream.host(), ring[0], bk.RingAttentionArgs(**arguments)),
            lambda: ring.run_all(
                bk.Stream.host(), plan, [bk.RingAttentionArgs(**arguments) for _ in ring]),
        ):
            with pytest.raises(error) as caught:
                call()
            assert type(caught.value) is error
            assert argument in str(caught.value)

    attempt()
    arrays = [a for a in arguments.values() if isinstance(a, np.ndarray)]
    references = [sys.getrefcount(a) for a in arrays]
    for _ in range(3):
        attempt()
    assert [sys.getrefcount(a) for a in arrays] == references
    for array, old in zip(outputs, before, strict=True):
        assert np.array_equal(array, old, equal_nan=array.dtype.kind == "f")


def test_wrong_streams_communicators_and_argument_objects(plan):
    ring = bk.LocalCommunicator.ring(1)
    args = bk.RingAttentionArgs(**good())
    with pytest.raises(bk.InvalidProblemError, match="stream"):
        plan.run(bk.Stream(0, device=0), ring[0], args)
    with pytest.raises(bk.InvalidProblemError, match="stream"):
        plan.run("stream", ring[0], args)
    with pytest.raises(bk.InvalidProblemError, match="comm"):
        plan.run(bk.Stream.host(), ring, args)
    with pytest.raises(bk.InvalidProblemError, match="comm"):
        plan.run(bk.Stream.host(), None, args)
    call = bk.FlashSdpaDescriptor(1, 1, 2, 2, 8, element="F32")
    for kind in (bk.FlashSdpaPlan, bk.FlashSdpaBackwardPlan):
        one = kind.select(call, bk.Stream.host())
        for run in (one.can_implement, lambda x, one=one: one.run(bk.Stream.host(), x)):
            with pytest.raises(bk.InvalidProblemError, match="args: got NoneType, must be FlashSdpa"):
                run(None)
    with pytest.raises(bk.InvalidProblemError, match="got dict, must be RingAttentionArgs"):
        plan.run(bk.Stream.host(), ring[0], good())
    with pytest.raises(bk.InvalidProblemError, match="world_size"):
        plan.can_implement(args, 0)
    with pytest.raises(bk.InvalidProblemError, match="world_size, comm: got both"):
        plan.can_implement(args, 1, comm=ring[0])
    with pytest.raises(bk.InvalidProblemError, match="comm"):
        plan.can_implement(args, comm=ring)
    plan.can_implement(args, comm=ring[0])
    ring[0].abort()
    with pytest.raises(bk.CommunicatorError):
        plan.can_implement(args, comm=ring[0])
    ring = bk.LocalCommunicator.ring(1)
    with pytest.raises(TypeError, match="select"):
        bk.RingAttentionPlan()
    for other in (None, "ring", bk.Stream.host()):
        for plan_type in (bk.RingAttentionPlan, bk.FlashSdpaPlan):
            with pytest.raises(bk.InvalidProblemError, match="descriptor"):
                plan_type.select(bk.Stream.host(), other)
    with pytest.raises(bk.InvalidProblemError, match="descriptor"):
        bk.RingAttentionPlan.select(bk.Stream.host(), bk.FlashSdpaDescriptor(1, 1, 1, 1, 1))
    with pytest.raises(bk.UnsupportedError, match="head_dim: got 2000"):
        bk.RingAttentionPlan.select(
            bk.Stream.host(), bk.RingAttentionDescriptor(1, 1, 1, 1, 2000))


@pytest.mark.parametrize(
    ("bad", "name"),
    [({"rank": 2}, "rank"), ({"origin": -1}, "origin"), ({"world_size": 0}, "world_size"),
     ({"world_size": "2"}, "world_size"), ({"y": None}, "y"), ({"q": None}, "q"),
     ({"last": False}, "accumulator_scratch"), ({"first": 1}, "first: got 1, must be a bool"),
     ({"last": "no"}, "last: got 'no', must be a bool"), ({"follows": None}, "follows: got None")],
    ids=str,
)
def test_a_step_of_wrong_arguments(plan, bad, name):
    given = good()
    step = {n: given[n] for n in "qkvy"} | {"rank": 0, "origin": 0, "world_size": 2}
    with pytest.raises(bk.InvalidProblemError, match=name):
        plan.step(bk.Stream.host(), **(step | bad))
    assert np.isnan(given["y"]).all()
    plan.step(bk.Stream.host(), **step)
    assert np.isfinite(given["y"]).all()


@pytest.mark.parametrize(
    "make",
    [lambda: bk.LocalCommunicator.ring(0), lambda: bk.LocalCommunicator.ring("2"),
     lambda: bk.LocalCommunicator.ring(2, device="gpu"),
     lambda: bk.LocalCommunicator.ring(2, device=[0]),
     lambda: bk.LocalCommunicator.ring(2, timeout=0)],
)
def test_a_local_ring_of_wrong_arguments(make):
    with pytest.raises(bk.InvalidProblemError):
        make()


def test_interleaved_views_of_one_tensor_do_not_overlap(plan):
    """y may be a slice of a packed tensor whose other slices are inputs."""
    packed = np.zeros((B, H, Q, 2 * D), ELEMENT)
    arguments = good() | {"q": packed[..., :D], "y": packed[..., D:]}
    plan.can_implement(bk.RingAttentionArgs(**arguments), RANKS)
    arguments["y"] = packed[..., D - 1 : -1]
    with pytest.raises(bk.InvalidProblemError, match="overlaps q"):
        plan.can_implement(bk.RingAttentionArgs(**arguments), RANKS)
