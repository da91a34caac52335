"""run_all: what one rank writes is no memory of another rank."""

import numpy as np
import pytest
from helpers.gradients import draw
from helpers.ring_gradients import HostGradients

import baracuda_kernels as bk
from baracuda_kernels.testing import attention

P, H, S, D = 3, 2, 8, 16
HOST = bk.Stream.host()


class Forward:
    """A local ring, and the operands of every rank by name."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x = [rng.standard_normal((1, H, P * S, D)) for _ in range(3)]
        self.plan = bk.RingAttentionPlan.select(
            bk.RingAttentionDescriptor(1, H, S, S, D, element="F64"), HOST)
        self.ring = bk.LocalCommunicator.ring(P)
        self.held = [self.operands(rank) for rank in range(P)]

    def operands(self, rank):
        q, k, v = (bk.shard(x, P)[rank].copy() for x in self.x)
        return {"q": q, "k": k, "v": v, "y": np.zeros_like(q),
                "lse": np.zeros((1, H, S), np.float32),
                "kv_scratch_a": np.zeros(self.plan.kv_scratch_elements),
                "kv_scratch_b": np.zeros(self.plan.kv_scratch_elements),
                "accumulator_scratch": np.zeros(self.plan.accumulator_scratch_bytes, np.uint8)}

    def run(self):
        self.args = [bk.RingAttentionArgs(**held) for held in self.held]
        self.again()

    def again(self):
        self.ring.run_all(HOST, self.plan, self.args)

    def is_right(self):
        y = bk.unshard([held["y"] for held in self.held])
        return np.abs(y - attention(*self.x)[0]).max() < 1e-12


WRITTEN = ["y", "lse", "kv_scratch_a", "kv_scratch_b", "accumulator_scratch"]
SHARED = [(name, name) for name in WRITTEN] + [
    ("y", "q"), ("q", "y"), ("kv_scratch_a", "kv_scratch_b"), ("v", "kv_scratch_a")]


@pytest.mark.parametrize(("one", "other"), SHARED)
def test_ranks_that_share_what_one_of_them_writes(one, other):
    ring = Forward()
    assert ring.run() is None and ring.is_right()
    mine, theirs = ring.held[2], ring.held[0]
    memory = np.zeros(max(mine[one].nbytes, theirs[other].nbytes), np.uint8)
    for held, name in ((mine, one), (theirs, other)):
        memory[: held[name].nbytes] = held[name].reshape(-1).view(np.uint8)
        held[name] = memory[: held[name].nbytes].view(held[name].dtype).reshape(held[name].shape)
    before = memory.copy()
    for _ in range(2):
        with pytest.raises(bk.InvalidProblemError, match="of rank .*, must be separate") as raised:
            ring.run()
        said = str(raised.value)
        assert one in said and other in said and "rank 2" in said and "rank 0" in said
        assert said.split(":")[0] in WRITTEN
        with pytest.raises(bk.InvalidProblemError, match="must be separate"):
            ring.again()
    assert np.array_equal(memory, before)
    mine[one], theirs[other] = ring.operands(2)[one], ring.operands(0)[other]
    ring.run()
    assert ring.is_right()


def test_arguments_that_were_compared_with_others():
    """Neither set is new, their mixture is."""
    one, other = Forward(), Forward()
    other.ring, other.held[1]["y"] = one.ring, one.held[0]["y"]
    for ring in (one, other, one, other):
        ring.run()
        ring.again()
    one.args[1] = other.args[1]
    with pytest.raises(bk.InvalidProblemError, match="^y: .*, must be separate"):
        one.again()
    other.again()


def test_what_is_only_read_may_be_shared():
    ring = Forward()
    for name in ("k", "v"):
        for held in ring.held[1:]:
            held[name] = ring.held[0][name]
    ring.x[1:] = [np.concatenate([ring.held[0][name]] * P, 2) for name in ("k", "v")]
    ring.run()
    assert ring.is_right()


@pytest.mark.parametrize("rows", [lambda r: slice(r * S, (r + 1) * S), lambda r: slice(r, None, P)],
                         ids=["beside", "interleaved"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)], ids=["BHSD", "BSHD"])
def test_parts_of_one_tensor_are_separate(rows, order):
    ring = Forward()
    shape = (1, H, P * S, D)
    whole = np.zeros([shape[i] for i in order]).transpose(np.argsort(order))
    for rank, held in enumerate(ring.held):
        held["y"] = whole[:, :, rows(rank)]
    ring.run()
    assert ring.is_right()
    ring.held[1]["y"] = whole[:, :, rows(0)]
    with pytest.raises(bk.InvalidProblemError, match="^y: got memory of rank"):
        ring.run()


@pytest.mark.parametrize("name", ["dq", "dk", "dv", "scratch", "kv_scratch_a", "kv_scratch_b",
                                  "kv_gradient_scratch"])
def test_gradients(name):
    ring = HostGradients(draw("f32", 0, heads=H, query_len=P * S, head_dim=D), P)
    ring.run()
    held = {**ring.ranks[1].held, name: ring.ranks[0].held[name]}
    ring.args[1] = bk.RingAttentionBackwardArgs(**held)
    ring.poison()
    with pytest.raises(bk.InvalidProblemError, match=f"^{name}: got memory of rank .*, must be"):
        ring.run()
    assert all(np.isnan(x).all() for x in ring.gathered())


def test_the_memory_of_many_ranks():
    ranks, d = 64, bk.RingAttentionDescriptor(1, 1, 1, 1, 8)
    plan, ring = bk.RingAttentionPlan.select(d, HOST), bk.LocalCommunicator.ring(ranks)
    whole = np.zeros((3, ranks, 1, 1, 1, 8), np.float32)
    args = [bk.RingAttentionArgs(
        q=q, k=k, v=v, y=y, kv_scratch_a=np.zeros(plan.kv_scratch_elements, np.float32),
        kv_scratch_b=np.zeros(plan.kv_scratch_elements, np.float32),
        accumulator_scratch=np.zeros(plan.accumulator_scratch_bytes, np.uint8))
        for q, k, v, y in zip(*whole, np.ones_like(whole[0]), strict=True)]  # fmt: skip
    ring.run_all(HOST, plan, args)
    assert not any(np.asarray(one.y).any() for one in args)
