"""Backward calls of rings: NumPy arrays on the host or tensors on a GPU, with outputs poisoned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import baracuda_kernels as bk

from .gradients import HOST, Problem, accumulator, dtype_of, forward


class GradientRank:
    """One rank's operands, outputs and scratch, and the arguments that view them.

    Parameters
    ----------
    full : callable
        ``full(shape, kind)``: poisoned memory on the plan's device. kind is "operand" (the
        operands' dtype), "wide" (the accumulator's type) or "bytes".
    wide : bool
        dk and dv in the accumulator's type.
    """

    def __init__(
        self, plan: Any, x: Problem, y: Any, lse: Any, world_size: int, full: Callable[..., Any],
        *, wide: bool = False,
    ) -> None:  # fmt: skip
        self.x, self.y, self.lse = x, y, lse
        of_keys = "wide" if wide else "operand"
        self.dq = full(x.q.shape, "operand")
        self.dk, self.dv = full(x.k.shape, of_keys), full(x.v.shape, of_keys)
        self.held: dict[str, Any] = {
            **x._asdict(), "y": y, "lse": lse, "dq": self.dq, "dk": self.dk, "dv": self.dv,
            "scratch": full((plan.scratch_bytes,), "bytes"),
        }  # fmt: skip
        if world_size > 1:
            self.held |= {
                "kv_scratch_a": full((plan.kv_scratch_elements,), "operand"),
                "kv_scratch_b": full((plan.kv_scratch_elements,), "operand"),
                "kv_gradient_scratch": full((plan.kv_gradient_scratch_bytes,), "bytes"),
            }
        self.args = bk.RingAttentionBackwardArgs(**self.held)
        self._sums, self.unused = self.held.get("kv_gradient_scratch"), None

    def save_memory(self, plan: Any, *, with_kv_scratch_b: bool) -> None:
        """Let dq hold one of the sums: from now on there is the least scratch. The rest of the
        memory is poisoned and `unused`."""
        nbytes = plan.least_kv_gradient_scratch_bytes(with_kv_scratch_b)
        self.held["kv_gradient_scratch"], self.unused = self._sums[:nbytes], self._sums[nbytes:]
        self.unused[:] = 0xFF
        if not with_kv_scratch_b:
            del self.held["kv_scratch_b"]
        self.args = bk.RingAttentionBackwardArgs(**self.held)

    def overruns(self) -> bool:
        """Whether something was written behind the least scratch."""
        return bool((self.unused != 0xFF).any())

    @property
    def gradients(self) -> tuple[Any, Any, Any]:
        return self.dq, self.dk, self.dv


def ring_descriptor(
    q: Any, k: Any, layout: str = "contiguous", **options: Any
) -> bk.RingAttentionDescriptor:
    """Of one rank's q and k."""
    return bk.RingAttentionDescriptor(
        *q.shape[:3], k.shape[2], q.shape[3], element=dtype_of(q).upper(),
        num_kv_heads=k.shape[1], sequence_layout=layout, **options,
    )  # fmt: skip


def numpy_full(dtype: str) -> Callable[..., np.ndarray]:
    """Poisoned NumPy arrays, for operands of that dtype."""

    def full(shape: Any, kind: str, operand: Any = None) -> np.ndarray:
        if kind == "bytes":
            return np.full(shape, 0xFF, np.uint8)
        made: np.ndarray = np.full(shape, np.nan, accumulator(dtype) if kind == "wide" else operand)
        return made

    from baracuda_kernels.testing import NUMPY_DTYPES

    return lambda shape, kind: full(shape, kind, NUMPY_DTYPES[dtype])


class HostGradients:
    """A local ring on the host with the memory of all ranks, after a forward of one rank."""

    def __init__(
        self, x: Problem, world_size: int, *, layout: str = "contiguous", is_causal: bool = False,
        wide: bool = False, timeout: float = 30.0,
    ) -> None:  # fmt: skip
        self.world_size, self.layout = world_size, layout
        results = forward(x, is_causal=is_causal)
        self.shards = [
            [None] * world_size if a is None else
            [np.ascontiguousarray(s) for s in bk.shard(a, world_size, sequence_layout=layout)]
            for a in (*x, *results)
        ]  # fmt: skip
        desc = ring_descriptor(
            self.shards[0][0], self.shards[1][0], layout, is_causal=is_causal
        )
        self.plan = bk.RingAttentionBackwardPlan.select(desc, HOST)
        full = numpy_full(dtype_of(x.q))
        self.ranks = [
            GradientRank(self.plan, Problem(*given[:5]), *given[5:], world_size, full, wide=wide)
            for given in zip(*self.shards, strict=True)
        ]
        self.ring = bk.LocalCommunicator.ring(world_size, timeout=timeout)
        self.args = [rank.args for rank in self.ranks]

    def save_memory(self, *, with_kv_scratch_b: bool) -> None:
        """As `GradientRank.save_memory`, for all ranks."""
        for rank in self.ranks:
            rank.save_memory(self.plan, with_kv_scratch_b=with_kv_scratch_b)
        self.args = [rank.args for rank in self.ranks]

    def run(self, **options: Any) -> list[np.ndarray]:
        self.ring.run_all(HOST, self.plan, self.args, **options)
        return self.gathered()

    def gathered(self) -> list[np.ndarray]:
        gathered = zip(*(rank.gradients for rank in self.ranks), strict=True)
        return [bk.unshard(list(of_ranks), sequence_layout=self.layout) for of_ranks in gathered]

    def poison(self) -> None:
        """Everything that a run may write."""
        for rank in self.ranks:
            for name, x in rank.held.items():
                if x is not None and (name.startswith("d") and name not in ("dy", "dlse")
                                      or name.endswith("scratch") or "_scratch_" in name):
                    x.view(np.uint8)[...] = 0xFF


def by_hand(ring: HostGradients) -> list[list[np.ndarray]]:
    """dq, dk, dv of every rank by `plan.step`. A chunk's shares are added in the schedule's
    order."""
    p, plan = ring.world_size, ring.plan
    wide = accumulator(dtype_of(ring.ranks[0].x.q))
    shares: list[dict[int, list[np.ndarray]]] = [{} for _ in range(p)]  # of a chunk, by rank
    found = []
    for number, rank in enumerate(ring.ranks):
        dq = np.full_like(rank.x.q, np.nan)
        scratch = np.full(plan.scratch_bytes, 0xFF, np.uint8)
        for step in range(p):
            origin = (number - step) % p
            k, v = ring.ranks[origin].x[1:3]
            share = [np.full(k.shape, np.nan, wide) for _ in range(2)]
            first = {"y": rank.y, "lse": rank.lse, "dlse": rank.x.dlse} if step == 0 else {}
            plan.step(
                HOST, q=rank.x.q, k=k, v=v, dy=rank.x.dy, dk=share[0], dv=share[1], **first,
                dq=dq if step == p - 1 else None, scratch=scratch, rank=number, origin=origin,
                world_size=p, first=step == 0, last=step == p - 1,
            )  # fmt: skip
            shares[origin][number] = share
        found.append([dq])
    for origin in range(p):
        for i in range(2):
            total = None
            for rank in ((origin + step) % p for step in range(1, p)):
                share = shares[origin][rank][i]
                total = share if total is None else total + share
            own = shares[origin][origin][i]
            total = own if total is None else total + own
            found[origin].append(total.astype(ring.ranks[origin].gradients[i + 1].dtype))
    return found
