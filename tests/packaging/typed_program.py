"""A user's program, for the type checkers: what every public call returns. Not run."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import baracuda_kernels as bk
from baracuda_kernels import predict, reference, registry

Half = NDArray[np.float16]


def whole_arrays(q: Half, k: Half, v: Half) -> Path:
    y, lse = bk.run_local_ring(q, k, v, 4, is_causal=True, sequence_layout="zigzag", device="cpu")
    assert_type(y, Half)
    assert_type(lse, NDArray[np.floating[Any]])
    listed, _ = bk.run_local_ring([[[[1.0]]]], [[[[1.0]]]], [[[[1.0]]]], 1)
    assert_type(listed, NDArray[np.floating[Any]])
    assert_type(bk.shard(q, 4), list[Half])
    assert_type(bk.unshard(bk.shard(q, 4)), Half)
    assert_type(bk.positions(4, 0, 2), NDArray[np.int64])
    exact, _ = reference.attention(q, k, v)
    assert_type(reference.error_of(y, exact), dict[str, float])
    assert len(reference.attention_backward(q, k, v, y)) == 3
    return Path(bk.__version__)


class Tensor:
    """Any other library's."""


def other_arrays(q: Tensor) -> tuple[Tensor, Tensor]:
    return bk.run_local_ring(q, q, q, 2)


def plans(comm: bk.Communicator, args: bk.RingAttentionArgs) -> int:
    descriptor = bk.RingAttentionDescriptor(1, 2, 3, 4, 5, is_causal=True, element="BF16")
    explanation = registry.explain(descriptor, "sm_90", bk.PlanPreference(allow_sm90a=False))
    assert_type(explanation, registry.Explanation)
    assert_type(explanation.family, str | None)
    assert_type(explanation.selected, bk.KernelSku | None)
    plan = bk.RingAttentionPlan.select(descriptor, bk.Stream.host(), bk.PlanPreference())
    assert_type(plan, bk.RingAttentionPlan)
    earlier = bk.RingAttentionPlan.select(bk.Stream.host(), descriptor)
    assert_type(earlier, bk.RingAttentionPlan)
    named = bk.FlashSdpaPlan.select(stream=None, descriptor=bk.FlashSdpaDescriptor(1, 1, 1, 1, 8))
    assert_type(named, bk.FlashSdpaPlan)
    backward = bk.FlashSdpaBackwardPlan.select(
        named.descriptor, bk.Stream.host(), bk.PlanPreference(deterministic=True)
    )
    assert_type(backward, bk.FlashSdpaBackwardPlan)
    assert_type(backward.scratch_bytes, int)
    timeline = bk.RingTimeline()
    plan.run(bk.Stream.host(), comm, args, timeline=timeline)
    assert_type(timeline.steps, list[bk.RingStepTime])
    assert_type(timeline.spans(), list[bk.RingSpan])
    assert_type(plan.sku.precision_guarantee.math_precision, bk.MathPrecision)
    assert_type(registry.skus(element="BF16"), list[bk.KernelSku])
    return plan.kv_scratch_elements


def paper() -> float:
    problem = predict.RingProblem(seq=1024, ranks=4, heads=8, head_dim=64)
    machine = predict.Machine(rates=predict.ComputeRates.constant(400.0), link_gbps=400.0)
    found = predict.compare(problem, machine)
    assert_type(found.recommendation.layout, bk.SequenceLayout)
    return found.forecasts[0].seconds


def ring(bad: bk.BaracudaError) -> str:
    local = bk.LocalCommunicator.ring(2)
    assert_type(local.ranks, tuple[bk.LocalCommunicator, ...])
    assert_type(local[0].world_size, int)
    return str(bad)
