"""The backward calls of one ring."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from baracuda_kernels import (
    PlanPreference,
    RingAttentionBackwardArgs,
    RingAttentionBackwardPlan,
)
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.torch import _problem
from baracuda_kernels.interop.torch._call import Call, keep, view_of
from baracuda_kernels.interop.torch._problem import descriptor_of, problem_of, refuse_capture

if TYPE_CHECKING:
    from baracuda_kernels.interop.torch._ring import Ring


class Gradients:
    """The plans of a ring's backward calls, and the arguments on which the ranks have agreed.

    Every rank makes the same calls, so all ranks clear their caches in the same call.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._plans: dict[tuple[Any, ...], RingAttentionBackwardPlan] = {}
        self._args: dict[tuple[Any, ...], tuple[RingAttentionBackwardArgs, bytes]] = {}

    def forget_addresses(self) -> None:
        """Drop the cached arguments, on which the ranks have agreed."""
        self._args.clear()

    def forget_plans(self) -> None:
        """Drop the cached plans."""
        self._plans.clear()

    def plan(self, problem: tuple[Any, ...]) -> RingAttentionBackwardPlan:
        """The plan for a problem of `problem_of`; raises if no kernel has its gradients."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        key = problem, deterministic
        plan = self._plans.get(key)
        if plan is None:
            plan = self._select(problem, deterministic)
            if keep(self._plans, key, plan):
                self._ring.agree_anew()
        return plan

    def prepare(
        self,
        dy: torch.Tensor | None,
        dlse: torch.Tensor | None,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        y: torch.Tensor,
        lse: torch.Tensor,
        is_causal: bool,
        scale: float | None,
        sequence_layout: str,
    ) -> Call:
        """Make a call of this rank, before the other ranks are asked."""
        ring = self._ring
        problem = problem_of(q, k, v, is_causal, scale, sequence_layout)
        _check(dy, dlse, q, y, lse)
        plan = self.plan(problem)
        if dy is None:
            dy = torch.zeros_like(y)
        given = q, k, v, y, dy, lse
        outputs = tuple(map(_problem.empty_like, (q, k, v)))
        travel = self._travel(plan, q)
        scratch = self._scratch(plan, q) | travel
        places = (plan, *(x.data_ptr() for x in (*given, *outputs)),
                  *(x.stride() for x in (*given, *outputs)),
                  None if dlse is None else (dlse.data_ptr(), dlse.stride()),
                  *(x.data_ptr() for x in scratch.values()))  # fmt: skip
        held: tuple[Any, ...] = (given, dlse)
        new = None
        kept = self._args.get(places)
        if kept is None:
            suited = _problem.sendable if ring.comm.world_size > 1 else _problem.readable
            read = {"q": _problem.readable(q), "k": suited(k), "v": suited(v)}
            read |= {"y": _problem.readable(y), "dy": _problem.readable(dy), "lse": lse}
            if dlse is not None:
                read["dlse"] = dlse
            held = tuple(read.values())
            written = dict(zip(("dq", "dk", "dv"), outputs, strict=True))
            views = {
                name: view_of(x, ring.ordinal) for name, x in (read | written | scratch).items()
            }
            args = RingAttentionBackwardArgs(**views)
            side, new = ring.compared(plan, args, problem, read["k"], read["v"])
            kept = args, side
            if all(read[name] is x for name, x in zip(read, given, strict=False)):
                keep(self._args, places, kept)
        return (plan, *kept, outputs, new, travel, (held, scratch))

    def _select(self, problem: tuple[Any, ...], deterministic: bool) -> RingAttentionBackwardPlan:
        refuse_capture(self._ring.device)
        descriptor, stream = descriptor_of(problem), self._ring.stream()
        if not deterministic:
            return RingAttentionBackwardPlan.select(descriptor, stream)
        preference = PlanPreference(deterministic=True)
        try:
            return RingAttentionBackwardPlan.select(descriptor, stream, preference)
        except UnsupportedError as error:
            if not torch.is_deterministic_algorithms_warn_only_enabled():
                raise UnsupportedError(
                    f"ring_attention: torch.use_deterministic_algorithms is on, and {error}"
                ) from error
            text = f"ring_attention: its gradient is not deterministic: {error}"
            warnings.warn(text, stacklevel=2)
            return RingAttentionBackwardPlan.select(descriptor, stream)

    def _scratch(self, plan: RingAttentionBackwardPlan, q: torch.Tensor) -> dict[str, torch.Tensor]:
        nbytes = plan.scratch_bytes
        return {"scratch": q.new_empty(nbytes, dtype=torch.uint8)} if nbytes else {}

    def _travel(self, plan: RingAttentionBackwardPlan, q: torch.Tensor) -> dict[str, torch.Tensor]:
        """The receive buffers of K and V, and of the sums of dk and dv."""
        ring = self._ring
        if ring.comm.world_size == 1:
            return {}
        # By peer the second buffer exists anyway: the forward has registered it.
        most = 2 if plan.needs_kv_scratch_b or ring.buffers.by_peer else 1
        travel = ring.receive_buffers(plan.kv_scratch_elements, q, most)
        # The dq of this operator is dense, so it can hold one of the sums.
        nbytes = plan.least_kv_gradient_scratch_bytes(with_kv_scratch_b="kv_scratch_b" in travel)
        name = "kv_gradient_scratch"
        return {**travel, name: ring.buffers.of(name, nbytes, q, torch.uint8)}


def _check(
    dy: torch.Tensor | None,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    y: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    for name, x, like in (("dy", dy, y), ("dlse", dlse, lse), ("y", y, q)):
        if x is not None and (x.shape, x.dtype, x.device) != (like.shape, like.dtype, like.device):
            raise InvalidProblemError(
                f"{name}: got {tuple(x.shape)} of {x.dtype} on {x.device}, must be "
                f"{tuple(like.shape)} of {like.dtype} on {like.device}"
            )
