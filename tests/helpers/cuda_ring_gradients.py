"""Backward calls of rings on a GPU: local rings, and the operands for ranks of other rings."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import baracuda_kernels as bk
from baracuda_kernels.testing import TORCH_DTYPES, torch_qkv

from .gradients import NAMES, Problem
from .ring_gradients import GradientRank, ring_descriptor
from .rings import preference


def gradient_problem(torch: Any, task: dict[str, Any]) -> list[Any]:
    """q, k, v and dy of a whole sequence, the same in every process."""
    q, k, v = torch_qkv("normal", task["dtype"], task["seed"], **task["shape"])
    dy, _, _ = torch_qkv("normal", task["dtype"], task["seed"] + 1, **task["shape"])
    return [q, k, v, dy]


def pool_gradients(torch: Any, pool: Any, task: dict[str, Any], x: Problem) -> list[Any]:
    """dq, dk and dv of the whole sequence: a pool runs its task `gradients`, and the ranks' files
    are put together."""
    pool.run({"do": "gradients", **task}, seconds=120)
    folder, gathered = Path(pool.folder.name), []
    for name, whole in zip(NAMES, x[:3], strict=True):
        shape = [*whole.shape[:2], whole.shape[2] // pool.world_size, whole.shape[3]]
        found = [
            torch.frombuffer(bytearray((folder / f"{name}-{rank}.bin").read_bytes()),
                             dtype=whole.dtype).reshape(shape).to(whole.device)
            for rank in range(pool.world_size)
        ]  # fmt: skip
        gathered.append(bk.unshard(found, sequence_layout=task["layout"]))
    return gathered


def full_of(torch: Any, dtype: str) -> Callable[..., Any]:
    """Poisoned tensors, for operands of that dtype."""
    operand = getattr(torch, TORCH_DTYPES[dtype])
    kinds = {"operand": operand, "wide": torch.float64 if dtype == "f64" else torch.float32}

    def full(shape: Any, kind: str) -> Any:
        if kind == "bytes":
            return torch.full(tuple(shape), 255, dtype=torch.uint8, device="cuda")
        return torch.full(tuple(shape), math.nan, dtype=kinds[kind], device="cuda")

    return full


class GpuGradients:
    """A local ring on one GPU with the memory of all ranks, after a forward of one rank."""

    def __init__(self, torch: Any, family: str, dtype: str, x: Problem, ranks: int, *,
                 layout: str = "contiguous", is_causal: bool = False, wide: bool = False) -> None:  # fmt: skip
        self.torch, self.layout = torch, layout
        stream = bk.Stream(torch.cuda.current_stream())
        full = full_of(torch, dtype)
        y, lse = full(x.q.shape, "operand"), full(x.q.shape[:3], "wide")
        forward = bk.RingAttentionPlan.select(
            ring_descriptor(x.q, x.k, is_causal=is_causal), stream, preference(family, dtype)
        )
        device = torch.cuda.current_device()
        alone = bk.LocalCommunicator.ring(1, device=device)
        forward.run(stream, alone[0], bk.RingAttentionArgs(q=x.q, k=x.k, v=x.v, y=y, lse=lse))
        shards = [
            [None] * ranks if a is None else
            [s.contiguous() for s in bk.shard(a, ranks, sequence_layout=layout)]
            for a in (*x, y, lse)
        ]  # fmt: skip
        desc = ring_descriptor(shards[0][0], shards[1][0], layout, is_causal=is_causal)
        self.plan = bk.RingAttentionBackwardPlan.select(desc, stream, preference(family, dtype))
        assert self.plan.family == family
        self.ranks = [
            GradientRank(self.plan, Problem(*given[:5]), *given[5:], ranks, full, wide=wide)
            for given in zip(*shards, strict=True)
        ]
        self.ring = bk.LocalCommunicator.ring(ranks, device=device, timeout=60.0)
        self.args = [rank.args for rank in self.ranks]

    def save_memory(self, *, with_kv_scratch_b: bool) -> None:
        """As `GradientRank.save_memory`, for all ranks."""
        for rank in self.ranks:
            rank.save_memory(self.plan, with_kv_scratch_b=with_kv_scratch_b)
        self.args = [rank.args for rank in self.ranks]

    def run(self, **options: Any) -> list[Any]:
        self.ring.run_all(self.torch.cuda.current_stream(), self.plan, self.args, **options)
        return self.gathered()

    def gathered(self) -> list[Any]:
        gathered = zip(*(rank.gradients for rank in self.ranks), strict=True)
        return [bk.unshard(list(of_ranks), sequence_layout=self.layout) for of_ranks in gathered]

    def poison(self) -> None:
        for rank in self.ranks:
            poison(self.torch, rank)


def poison(torch: Any, rank: GradientRank) -> None:
    """All memory that a run of a rank may write."""
    for name in ("dq", "dk", "dv", "scratch", "kv_scratch_a", "kv_scratch_b",
                 "kv_gradient_scratch"):  # fmt: skip
        if name in rank.held:
            rank.held[name].view(torch.uint8).fill_(255)


def by_steps(torch: Any, dtype: str, ring: GpuGradients) -> list[list[Any]]:
    """dq, dk and dv of every rank of a ring by `plan.step`, one step after the other on one stream,
    without an exchange. The shares of a chunk are added in the schedule's order, its own rank's
    last."""
    full, stream, ranks = full_of(torch, dtype), torch.cuda.current_stream(), len(ring.ranks)
    shares: list[dict[int, list[Any]]] = [{} for _ in range(ranks)]  # of a chunk, by rank
    found = []
    for number, rank in enumerate(ring.ranks):
        dq, scratch = full(rank.x.q.shape, "operand"), full((ring.plan.scratch_bytes,), "bytes")
        for step in range(ranks):
            origin = (number - step) % ranks
            k, v = ring.ranks[origin].x[1:3]
            share = shares[origin][number] = [full(k.shape, "wide") for _ in range(2)]
            ring.plan.step(
                stream, q=rank.x.q, k=k, v=v, dy=rank.x.dy, dk=share[0], dv=share[1], y=rank.y,
                lse=rank.lse, dlse=rank.x.dlse, dq=dq, scratch=scratch, rank=number,
                origin=origin, world_size=ranks, first=step == 0, last=step == ranks - 1,
            )  # fmt: skip
        found.append([dq])
    for origin, rank in enumerate(ring.ranks):
        for i in range(2):
            others = [shares[origin][(origin + s) % ranks][i] for s in range(1, ranks)]
            total = others[0]
            for share in others[1:]:
                total = total + share
            total = shares[origin][origin][i] + total
            found[origin].append(total.to(rank.dk.dtype))
    return found


def same(torch: Any, family: str, one: Any, other: Any) -> bool:
    """Whether dk and dv have equal bits, and dq too. On tensor cores dq, whose sum has no fixed
    order, must only be within four roundings."""
    if family != "simt":
        near = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}[one[0].dtype]
        torch.testing.assert_close(one[0], other[0], rtol=near, atol=near * float(
            one[0].abs().max()) / 16)  # fmt: skip
        one, other = one[1:], other[1:]
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
