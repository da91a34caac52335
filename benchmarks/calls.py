"""Single calls of attention and rings on one GPU, as the problems of several measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

import baracuda_kernels as bk
from baracuda_kernels.testing import preference, torch_qkv
from benchmarks import RING_HEAD_DIM, RING_HEADS
from benchmarks.timing import stream
from tests.helpers.rings import RankArrays, rank_arrays, shards_of


class Call(NamedTuple):
    """One call of a family; as many keys as queries, and heads of keys, if None."""

    family: str
    query_len: int
    dtype: str = "bf16"
    head_dim: int = RING_HEAD_DIM
    heads: int = RING_HEADS
    kv_heads: int | None = None
    batch: int = 1
    causal: bool = False
    key_len: int | None = None

    def params(self) -> dict[str, Any]:
        """Of a row."""
        known = {"kv_heads": self.kv_heads or self.heads, "key_len": self.key_len or self.query_len}
        return {**self._asdict(), **known}

    def descriptor(self, make: Any = bk.FlashSdpaDescriptor, **options: Any) -> Any:
        """Of that type."""
        return make(
            self.batch, self.heads, self.query_len, self.key_len or self.query_len, self.head_dim,
            is_causal=self.causal, element=bk.ElementKind.parse(self.dtype),
            num_kv_heads=self.kv_heads, **options,
        )  # fmt: skip

    def plan(self) -> bk.FlashSdpaPlan:
        """Of the family."""
        return bk.FlashSdpaPlan.select(
            self.descriptor(), stream(), preference(self.family, self.dtype)
        )

    def backward_plan(self, variant: str = "") -> bk.FlashSdpaBackwardPlan:
        """Of the family or its "-deterministic"; where that has no such kernel, of another."""
        wanted = preference(self.family + variant, self.dtype)
        return bk.FlashSdpaBackwardPlan.select(self.descriptor(), stream(), wanted)

    def qkv(self, seed: int) -> tuple[Any, Any, Any]:
        """Random inputs on the GPU."""
        return torch_qkv(
            "normal", self.dtype, seed, batch=self.batch, heads=self.heads, kv_heads=self.kv_heads,
            query_len=self.query_len, key_len=self.key_len, head_dim=self.head_dim,
        )  # fmt: skip

    def saved(self, seed: int) -> dict[str, Any]:
        """q, k, v, y, dy and lse on the GPU, as a forward pass leaves them."""
        q, k, v = self.qkv(seed)
        wider = torch.float64 if q.dtype == torch.float64 else torch.float32
        y, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=wider, device=q.device)
        self.plan().run(stream(), bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse))
        return {"q": q, "k": k, "v": v, "y": y, "dy": self.qkv(seed + 1000)[0], "lse": lse}

    def nbytes(self, arrays: int) -> int:
        """Of so many arrays with the heads of Q, and as many with those of K."""
        heads = arrays * (self.heads + (self.kv_heads or self.heads))
        itemsize = bk.ElementKind.parse(self.dtype).itemsize
        return self.batch * self.query_len * self.head_dim * heads * itemsize


# The problems of sm90a, of forward and backward alike.
HOPPER = [
    # B * S = 16384, H * D = 2048
    *[
        Call("sm90a", s, head_dim=d, heads=2048 // d, batch=16384 // s)
        for d in (128, 64, 256)
        for s in (2048, 8192, 16384)
    ],
    Call("sm90a", 8192, "f16", batch=2),
    Call("sm90a", 8192, heads=32, kv_heads=8, batch=2),
    *[Call("sm90a", s, batch=b) for b, s in ((32, 512), (16, 1000), (4, 4097))],
]


def scratch(nbytes: int, device: torch.device | str = "cuda") -> torch.Tensor:
    """Uninitialised bytes."""
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


class Ring:
    """A random sequence over a ring on one GPU, `x` on each rank, and the plan of a rank."""

    def __init__(self, x: Call, ranks: int, *, layout: str = "contiguous", seed: int = 0) -> None:
        self.qkv = x._replace(query_len=ranks * x.query_len).qkv(seed)
        self.shards: list[Sequence[Any]] = [*shards_of(*self.qkv, ranks, layout)]
        desc = x.descriptor(bk.RingAttentionDescriptor, sequence_layout=layout)
        self.plan = bk.RingAttentionPlan.select(desc, stream(), preference(x.family, x.dtype))

    def arrays(self) -> list[RankArrays]:
        """All else that each rank takes."""
        return [rank_arrays(torch, self.plan, q, k, v, len(self.shards)) for q, k, v in self.shards]

    def run_all(self, arrays: list[RankArrays]) -> Callable[[], None]:
        """A run of all ranks on one stream."""
        ring = bk.LocalCommunicator.ring(len(arrays), device=torch.cuda.current_device())
        args = [a.args for a in arrays]
        return lambda: ring.run_all(torch.cuda.current_stream(), self.plan, args)

    def step(self, rank: int, number: int, y: Any, state: Any, **options: Any) -> None:
        """Enqueue a rank's step of that number, as `step`."""
        step(self.plan, self.shards, rank, number, y, state, **options)


def step(
    plan: bk.RingAttentionPlan, shards: Sequence[Sequence[Any]], rank: int, number: int, y: Any,
    state: Any, *, steps: int = 0, follows: bool = True,
) -> None:  # fmt: skip
    """Enqueue a rank's step of that number, of `steps` (one for each of `shards` by default).

    With `follows` a step after the first may start while the one before it ends.
    """
    ranks, origin = len(shards), (rank - number) % len(shards)
    plan.step(
        torch.cuda.current_stream(), q=shards[rank][0], k=shards[origin][1], v=shards[origin][2],
        y=y, accumulator_scratch=state, rank=rank, origin=origin, world_size=ranks,
        first=number == 0, last=number == (steps or ranks) - 1, follows=follows and number > 0,
    )  # fmt: skip
