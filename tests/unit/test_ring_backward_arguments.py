"""The arguments of RingAttentionBackwardPlan on the host: sizes in numbers, what may be left out,
refusals."""

import threading

import numpy as np
import pytest
from helpers.gradients import HOST, draw
from helpers.ring_gradients import GradientRank, HostGradients, numpy_full, ring_descriptor

import baracuda_kernels as bk


def test_scratch_in_numbers():
    desc = bk.RingAttentionDescriptor(2, 4, 10, 7, 16, element="BF16", num_kv_heads=2)
    plan = bk.RingAttentionBackwardPlan.select(desc, HOST)
    elements = 2 * 2 * 7 * 16
    assert plan.kv_scratch_elements == 2 * elements
    assert plan.kv_gradient_scratch_bytes == 4 * 2 * elements * 4
    assert plan.scratch_bytes == 2 * 4 * 10 * (16 + 2) * 4
    assert plan.scratch_alignment == 16
    assert plan.needs_kv_scratch_b
    assert plan.least_kv_gradient_scratch_bytes() == plan.kv_gradient_scratch_bytes
    odd = bk.RingAttentionDescriptor(1, 1, 1, 1, 3, element="F32")
    plan = bk.RingAttentionBackwardPlan.select(HOST, odd)
    assert plan.kv_gradient_scratch_bytes == 4 * 32, "2 * 3 floats, up to whole 16 bytes"
    assert plan.sku.direction is bk.Direction.BACKWARD and plan.family == "host"
    assert plan.precision_guarantee.deterministic
    huge = bk.RingAttentionDescriptor(1, 1, 1, 2**50, 64, element="F32")
    assert bk.RingAttentionBackwardPlan.select(huge, HOST).kv_gradient_scratch_bytes == 2**61


def test_the_least_scratch_in_numbers():
    desc = bk.RingAttentionDescriptor(1, 4, 8, 8, 16, element="BF16", num_kv_heads=1)
    plan = bk.RingAttentionBackwardPlan.select(desc, HOST)
    assert not plan.needs_kv_scratch_b
    keys = 2 * 8 * 16
    assert plan.kv_gradient_scratch_bytes == 4 * keys * 4
    assert plan.least_kv_gradient_scratch_bytes() == 3 * keys * 4 + keys * 2
    assert plan.least_kv_gradient_scratch_bytes(with_kv_scratch_b=True) == 3 * keys * 4
    assert plan.least_kv_gradient_scratch_bytes(np.True_) == 3 * keys * 4
    for wrong in (None, 1, "yes"):
        with pytest.raises(bk.InvalidProblemError, match="with_kv_scratch_b: got .*, must be a bool"):
            plan.least_kv_gradient_scratch_bytes(wrong)


def rank_arguments(world_size, **changed):
    x = draw("f32", 0, heads=2, query_len=8, head_dim=8, dlse=True)
    plan = bk.RingAttentionBackwardPlan.select(ring_descriptor(x.q, x.k), HOST)
    y, lse = np.zeros_like(x.q), np.zeros(x.q.shape[:3], np.float32)
    held = GradientRank(plan, x, y, lse, world_size, numpy_full("f32")).held
    return plan, bk.RingAttentionBackwardArgs(**{**held, **changed})


SHORT = np.zeros(16, np.uint8)
REFUSED = [
    ({"kv_gradient_scratch": None}, bk.InvalidProblemError, "kv_gradient_scratch: got None"),
    ({"kv_gradient_scratch": SHORT}, bk.WorkspaceTooSmallError, "kv_gradient_scratch"),
    ({"scratch": None}, bk.InvalidProblemError, "scratch: got None"),
    ({"scratch": SHORT}, bk.WorkspaceTooSmallError, "scratch"),
    ({"kv_scratch_a": None}, bk.InvalidProblemError, "kv_scratch_a: got None"),
    ({"kv_scratch_b": np.zeros(3, np.float32)}, bk.BufferTooSmallError, "kv_scratch_b"),
    ({"dq": np.zeros((1, 2, 8, 4), np.float32)}, bk.InvalidProblemError, "dq: got shape"),
    ({"dk": np.zeros((1, 2, 8, 8), np.float64)}, bk.InvalidProblemError, "dk, dv: got F64"),
    ({"lse": np.zeros((1, 2, 8), np.float64)}, bk.InvalidProblemError, "lse: got F64, must be F32"),
    ({"dlse": np.zeros((1, 2, 4), np.float32)}, bk.InvalidProblemError, "dlse: got shape"),
    ({"k": np.zeros((1, 2, 16, 8), np.float32)[:, :, ::2]}, bk.InvalidProblemError,
     "k: got strides .* must be dense"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "kind", "text"), REFUSED, ids=lambda x: str(x)[:40])
def test_bad_arguments_are_refused_before_anything_moves(changed, kind, text):
    plan, args = rank_arguments(3, **changed)
    with pytest.raises(kind, match=text):
        plan.can_implement(args, 3)
    with pytest.raises(kind, match=text):
        plan.can_implement(args)
    ring = bk.LocalCommunicator.ring(3, timeout=5)
    all_args = [rank_arguments(3)[1], args, rank_arguments(3)[1]]
    with pytest.raises(kind, match=text):
        ring.run_all(HOST, plan, all_args)
    assert np.isnan(np.asarray(all_args[0].dq)).all()


def test_what_a_world_size_does_not_need_may_be_none():
    received = {"kv_scratch_a": None, "kv_scratch_b": None, "kv_gradient_scratch": None}
    plan, args = rank_arguments(3, **received)
    plan.can_implement(args, 1)
    plan, args = rank_arguments(3, kv_scratch_b=None)
    plan.can_implement(args, 2)
    spread = np.zeros((1, 2, 16, 8), np.float32)[:, :, ::2]
    plan, args = rank_arguments(1, k=spread)
    plan.can_implement(args, 1)


def test_where_dq_is_too_small_the_second_buffer_is_needed():
    x = draw("f32", 0, heads=2, query_len=8, head_dim=8)
    desc = ring_descriptor(x.q, x.k)
    assert bk.RingAttentionBackwardPlan.select(desc, HOST).needs_kv_scratch_b
    for kv_heads, element, needed in ((2, "F32", False), (2, "BF16", True), (1, "BF16", False)):
        desc = bk.RingAttentionDescriptor(1, 4, 8, 8, 8, element=element, num_kv_heads=kv_heads)
        plan = bk.RingAttentionBackwardPlan.select(desc, HOST)
        assert plan.needs_kv_scratch_b == needed, (kv_heads, element)
    plan, args = rank_arguments(3, kv_scratch_b=None)
    with pytest.raises(bk.InvalidProblemError, match="kv_scratch_b: got None"):
        plan.can_implement(args, 3)


def test_what_dq_must_be_to_hold_a_sum():
    x = draw("bf16", 0, heads=4, kv_heads=1, query_len=8, head_dim=8)
    plan = bk.RingAttentionBackwardPlan.select(ring_descriptor(x.q, x.k), HOST)
    y, lse, kind = np.zeros_like(x.q), np.zeros(x.q.shape[:3], np.float32), x.q.dtype
    held = GradientRank(plan, x, y, lse, 3, numpy_full("bf16")).held
    b, whole = held["kv_scratch_b"], plan.kv_gradient_scratch_bytes
    least, with_b = plan.least_kv_gradient_scratch_bytes(), 3 * whole // 4
    assert least == with_b + b.nbytes

    def check(dq, ranks, b, nbytes):
        given = {"dq": dq, "kv_scratch_b": b, "kv_gradient_scratch": np.zeros(nbytes, np.uint8)}
        plan.can_implement(bk.RingAttentionBackwardArgs(**{**held, **given}), ranks)

    turned = np.zeros((1, 8, 4, 8), kind).swapaxes(1, 2)
    spread = np.zeros((1, 4, 16, 8), kind)[:, :, ::2]
    shifted = np.zeros(257, kind)
    shifted = shifted[shifted.ctypes.data % 16 == 0 :][:256].reshape(1, 4, 8, 8)
    where = f"where kv_scratch_b is None or kv_gradient_scratch has less than {whole} bytes"
    saved = [(3, None, whole), (3, None, least), (3, b, with_b), (2, None, least), (2, b, with_b)]
    for case in saved:
        check(held["dq"], *case)
        check(turned, *case)
        with pytest.raises(bk.InvalidProblemError, match=f"dq: got strides .* dense .* {where}"):
            check(spread, *case)
        with pytest.raises(bk.MisalignedOperandError, match=f"dq, {where}: got address .* of 16"):
            check(shifted, *case)
    for case in ((3, b, whole), (2, None, whole), (2, b, whole)):
        check(spread, *case)
        check(shifted, *case)
    for ranks, given, nbytes in saved[1:]:
        with pytest.raises(bk.WorkspaceTooSmallError, match=f"kv_gradient_scratch.*{nbytes}"):
            check(held["dq"], ranks, given, nbytes - 1)


@pytest.mark.parametrize("has_scratch_b", [False, True])
def test_operands_may_be_bytes(has_scratch_b):
    x = draw("f32", 0, heads=4, kv_heads=2, query_len=24, head_dim=8)
    one, other = (HostGradients(x, 3) for _ in range(2))
    for rank in other.ranks:
        names = ("q", "k", "v", "y", "dy", "dq", "dk", "dv")
        held = rank.held | {name: rank.held[name].view(np.uint8).reshape(-1) for name in names}
        held["kv_scratch_b"] = held["kv_scratch_b"] if has_scratch_b else None
        other.args[other.ranks.index(rank)] = bk.RingAttentionBackwardArgs(**held)
    for mine, its in zip(one.run(), other.run(), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize(("one", "other"), [
    ("dk", "kv_scratch_b"), ("dv", "dk"), ("dq", "dy"), ("scratch", "kv_gradient_scratch"),
    ("kv_scratch_a", "kv_scratch_b"), ("dk", "k"), ("kv_gradient_scratch", "lse")])  # fmt: skip
def test_outputs_and_scratch_overlap_nothing(one, other):
    _, args = rank_arguments(3)
    sizes = [(getattr(args, name).shape, getattr(args, name).nbytes) for name in (one, other)]
    memory = np.zeros(max(nbytes for _, nbytes in sizes), np.uint8)
    changed = {}
    for name, (shape, nbytes) in zip((one, other), sizes, strict=True):
        is_bytes = name in ("scratch", "kv_gradient_scratch")
        changed[name] = memory[:nbytes].view(np.uint8 if is_bytes else np.float32).reshape(shape)
    plan, args = rank_arguments(3, **changed)
    with pytest.raises(bk.InvalidProblemError, match="overlaps"):
        plan.can_implement(args, 3)


def test_arguments_and_plans_of_another_direction():
    plan, args = rank_arguments(2)
    forward = bk.RingAttentionPlan.select(plan.descriptor, HOST)
    ring = bk.LocalCommunicator.ring(1)
    with pytest.raises(bk.InvalidProblemError,
                       match="got RingAttentionBackwardArgs, must be RingAttentionArgs"):
        forward.run(HOST, ring[0], args)
    x = np.zeros((1, 2, 8, 8), np.float32)
    other = bk.RingAttentionArgs(q=x, k=x, v=x, y=x.copy())
    for call in (plan.can_implement, lambda wrong: plan.run(HOST, ring[0], wrong)):
        for wrong in (other, {}, None):
            with pytest.raises(bk.InvalidProblemError, match="must be RingAttentionBackwardArgs"):
                call(wrong)
    with pytest.raises(bk.InvalidProblemError, match="must mean the same"):
        bk.LocalCommunicator.ring(2).run_all(HOST, [plan, forward], [args, other])
    with pytest.raises(TypeError, match="use RingAttentionBackwardPlan.select"):
        bk.RingAttentionBackwardPlan()


def test_ranks_of_which_one_means_the_forward_find_out():
    ring = bk.LocalCommunicator.ring(2, timeout=10)
    plan, _ = rank_arguments(2)
    plans = [plan, bk.RingAttentionPlan.select(plan.descriptor, HOST)]
    raised = [None, None]

    def work(rank):
        try:
            plans[rank].validate(ring[rank])
        except bk.InvalidProblemError as error:
            raised[rank] = str(error)

    threads = [threading.Thread(target=work, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert raised == ["rank 1: direction: got FORWARD, must be BACKWARD as on rank 0"] * 2


@pytest.mark.parametrize("wrong", [
    {"q": None}, {"dk": None}, {"dy": None}, {"scratch": None}, {"y": None}, {"lse": None},
    {"dq": None}, {"rank": 2}, {"origin": -1}, {"world_size": 0}], ids=str)  # fmt: skip
def test_steps_by_hand_are_checked(wrong):
    plan, args = rank_arguments(1)
    names = ("q", "k", "v", "dy", "dk", "dv", "y", "lse", "dlse", "dq", "scratch")
    good = {name: getattr(args, name) for name in names} | {"world_size": 2}
    plan.step(HOST, **good)
    with pytest.raises(bk.InvalidProblemError, match=next(iter(wrong))):
        plan.step(HOST, **{**good, **wrong})
    if wrong.keys() & {"y", "lse"}:  # only the preparation reads them
        plan.step(HOST, **{**good, **wrong, "dlse": None}, first=False)
    if "dq" in wrong:
        plan.step(HOST, **{**good, **wrong}, last=False)
