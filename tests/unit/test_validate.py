"""plan.validate: ranks that mean different calls find out before the first run."""

import numpy as np
import pytest
from helpers.rank_threads import on_ranks

import baracuda_kernels as bk

P = 3
GOOD = {"batch_size": 1, "num_heads": 4, "query_len": 4, "key_len": 4, "head_dim": 8,
        "element": "F32", "num_kv_heads": 2}


def validate(differ=None, args=lambda rank, plan: None):
    """Every rank on its own thread; rank 1's descriptor differs. What each one raised."""
    ring = bk.LocalCommunicator.ring(P, timeout=10)

    def work(rank):
        fields = {**GOOD, **(differ or {})} if rank == 1 else GOOD
        plan = bk.RingAttentionPlan.select(bk.Stream.host(), bk.RingAttentionDescriptor(**fields))
        plan.validate(ring[rank], args(rank, plan))

    return on_ranks(P, work)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_agreement(ranks):
    ring = bk.LocalCommunicator.ring(ranks, timeout=10)
    plan = bk.RingAttentionPlan.select(bk.Stream.host(), bk.RingAttentionDescriptor(**GOOD))
    assert on_ranks(ranks, lambda rank: plan.validate(ring[rank])) == [None] * ranks
    assert validate() == [None] * P


@pytest.mark.parametrize(
    ("differ", "text"),
    [
        ({"head_dim": 16}, "head_dim: got 16, must be 8"),
        ({"key_len": 5}, "key_len: got 5, must be 4"),
        ({"scale": 0.25}, "scale: got 0.25, must be 0.35"),
        ({"is_causal": True}, "is_causal: got True, must be False"),
        ({"element": "F64"}, "element: got F64, must be F32"),
        ({"num_kv_heads": 4}, "num_kv_heads: got 4, must be 2"),
        ({"sequence_layout": "ZIGZAG"}, "sequence_layout: got ZIGZAG, must be CONTIGUOUS"),
    ],
    ids=str,
)
def test_every_rank_names_the_one_that_differs(differ, text):
    for error in validate(differ):
        assert type(error) is bk.InvalidProblemError
        assert "rank 1: " in str(error) and text in str(error) and "rank 0" in str(error)


def arguments(plan, staged=False, order="BHSD"):
    shape = (1, 2, 4, 8)
    permutation = ["BHSD".index(c) for c in order]
    dense = np.zeros([shape[i] for i in permutation], np.float32)
    kv = dense.transpose(np.argsort(permutation))
    q, y = np.zeros((2, 1, 4, 4, 8), np.float32)
    given = {} if staged else {"k": kv, "v": kv.copy("K")}
    return bk.RingAttentionArgs(
        q=q, y=y, kv_scratch_a=np.zeros(plan.kv_scratch_elements, np.float32),
        kv_scratch_b=np.zeros(plan.kv_scratch_elements, np.float32),
        accumulator_scratch=np.zeros(plan.accumulator_scratch_bytes, np.uint8), **given)


def test_staging_and_dimension_order():
    assert validate(args=lambda rank, plan: arguments(plan)) == [None] * P
    for error in validate(args=lambda rank, plan: arguments(plan, staged=rank == 1)):
        assert "staging: got kv_scratch_a, must be in place" in str(error)
    for error in validate(args=lambda rank, plan: arguments(plan, order="BSHD" if rank == 1
                                                            else "BHSD")):
        assert "order of k's dimensions: got SHD, must be HSD" in str(error)


def test_bytes_lie_as_a_contiguous_tensor():
    def args(rank, plan):
        kv = np.zeros((1, 2, 4, 8), np.float32)
        kv = kv.view(np.uint8).reshape(-1) if rank == 1 else kv
        good = arguments(plan, staged=True)
        return bk.RingAttentionArgs(
            q=good.q, y=good.y, k=kv, v=kv.copy(), kv_scratch_a=good.kv_scratch_a,
            kv_scratch_b=good.kv_scratch_b, accumulator_scratch=good.accumulator_scratch)

    assert validate(args=args) == [None] * P


def test_a_wrong_operand_is_found_before_anything_is_sent():
    def args(rank, plan):
        good = arguments(plan)
        return bk.RingAttentionArgs(q=np.zeros((1, 4, 4, 8)), y=good.y, k=good.k, v=good.v)

    for error in validate(args=args):
        assert type(error) is bk.InvalidProblemError and str(error).startswith("q: ")
