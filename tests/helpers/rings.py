"""Running the public plans on torch tensors, the way an engine would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import baracuda_kernels as bk
from baracuda_kernels import testing


def preference(family: str, dtype: str) -> bk.PlanPreference:
    """The preference that leads `select` to `family`. Without a GPU for it the test is skipped."""
    try:
        return testing.preference(family, dtype)
    except bk.UnsupportedError:
        pytest.skip("capability: compute capability 9.0")


class RankArrays(NamedTuple):
    """One rank's operands and outputs."""

    plan: Any
    args: Any
    y: Any
    lse: Any
    held: dict


def descriptor(q: Any, k: Any, dtype: str, **options: Any) -> Any:
    """RingAttentionDescriptor of one rank's q and k."""
    return bk.RingAttentionDescriptor(
        q.shape[0],
        q.shape[1],
        q.shape[2],
        k.shape[2],
        q.shape[3],
        element=bk.ElementKind.parse(dtype),
        num_kv_heads=k.shape[1],
        **options,
    )


def rank_arrays(
    torch: Any, plan: Any, q: Any, k: Any, v: Any, world_size: int, *, staged: bool = False
) -> RankArrays:
    """Arguments of one rank: K and V where they lie, or staged in kv_scratch_a."""
    y = torch.full_like(q, float("nan"))
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.full(q.shape[:3], float("nan"), dtype=lse_dtype, device=q.device)
    given: dict[str, Any] = {"q": q, "y": y, "lse": lse}
    if world_size > 1 or staged:
        scratch = [
            torch.full((plan.kv_scratch_elements,), float("nan"), dtype=q.dtype, device=q.device)
            for _ in range(2)
        ]
        state_bytes = plan.accumulator_scratch_bytes
        state = torch.full((state_bytes,), 255, dtype=torch.uint8, device=q.device)
        given |= {
            "kv_scratch_a": scratch[0],
            "kv_scratch_b": scratch[1],
            "accumulator_scratch": state,
        }
    if staged:
        scratch[0].copy_(torch.cat([k.reshape(-1), v.reshape(-1)]))
    else:
        given |= {"k": k, "v": v}
    return RankArrays(plan, bk.RingAttentionArgs(**given), y, lse, given)


def shards_of(q: Any, k: Any, v: Any, world_size: int, layout: str) -> list[tuple]:
    """(q, k, v) of every rank, dense."""
    cut = [bk.shard(x, world_size, sequence_layout=layout) for x in (q, k, v)]
    return [tuple(x.contiguous() for x in rank) for rank in zip(*cut, strict=True)]


def local_ring(
    torch: Any,
    family: str,
    dtype: str,
    q: Any,
    k: Any,
    v: Any,
    world_size: int,
    *,
    layout: str = "contiguous",
    is_causal: bool = False,
    scale: float | None = None,
    staged: bool = False,
) -> tuple[Any, Any]:
    """(y, lse) of whole tensors through P plans on one GPU, gathered."""
    stream = bk.Stream(torch.cuda.current_stream())
    shards = shards_of(q, k, v, world_size, layout)
    desc = descriptor(
        *shards[0][:2],
        dtype,
        is_causal=is_causal,
        scale=scale,
        sequence_layout=bk.SequenceLayout.parse(layout),
    )
    plan = bk.RingAttentionPlan.select(stream, desc, preference(family, dtype))
    ranks = [rank_arrays(torch, plan, *shard, world_size, staged=staged) for shard in shards]
    ring = bk.LocalCommunicator.ring(world_size, device=q.device.index)
    ring.run_all(stream, [plan] * world_size, [rank.args for rank in ranks])
    return (
        bk.unshard([rank.y for rank in ranks], sequence_layout=layout),
        bk.unshard([rank.lse for rank in ranks], sequence_layout=layout),
    )


def same_bits(torch: Any, a: Any, b: Any) -> bool:
    """Equality of every bit, NaN and signed zeros included."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@contextlib.contextmanager
def case(**parameters: Any) -> Iterator[None]:
    """Names the case in whatever fails inside: for grids that run in one test."""
    try:
        yield
    except Exception as error:
        error.add_note(f"case: {parameters}")
        raise
