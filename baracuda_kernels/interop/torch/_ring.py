"""One ring per process group and device, with its communicator and plans."""

from __future__ import annotations

import atexit
import functools
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels import (
    Communicator,
    RingAttentionArgs,
    RingAttentionDescriptor,
    RingAttentionPlan,
    Stream,
    TensorRef,
)
from baracuda_kernels.errors import InvalidProblemError
from baracuda_kernels.interop.torch import _problem, _process_group

_rings: dict[tuple[str, torch.device], Ring] = {}


def ring_of(group_name: str, device: torch.device) -> Ring:
    """The ring over that group on that device; making it is collective."""
    group = _process_group.resolve(group_name)
    ring = _rings.get((group_name, device))
    # A destroyed group's name may be given to a new one.
    if ring is None or ring.group is not group:
        if ring is not None:
            ring.close()
        _refuse_capture(device)
        ring = _rings[group_name, device] = Ring(group, device)
    return ring


@atexit.register
def clear_cache() -> None:
    """Close every communicator and drop every plan that calls have left in the cache.

    Not collective. The next call of each group makes them anew. Call it before
    ``torch.distributed.destroy_process_group`` to give NCCL's memory back.
    """
    while _rings:
        _rings.popitem()[1].close()


class Ring:
    """The ranks of a process group on one kind of device."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group = group
        self.device = device
        self._comm = _process_group.communicator(group, device)
        self._world_size = self._comm.world_size
        self._ordinal = -1 if device.type == "cpu" else device.index
        # Every rank makes the same calls, so every rank forgets and makes the same plans.
        self._plan = functools.lru_cache(maxsize=512)(self._make_plan)
        self._stream = functools.lru_cache(maxsize=64)(self._make_stream)
        # Allocators hand out the same addresses again and again.
        self._args = functools.lru_cache(maxsize=512)(self._make_args)

    def close(self) -> None:
        if isinstance(self._comm, Communicator):
            self._comm.close()

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        is_causal: bool,
        scale: float | None,
        sequence_layout: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """y and lse of the whole ring's attention for the rows of q; every rank calls it."""
        y, lse = _problem.outputs(q)
        q = _problem.readable(q)
        if self._world_size == 1:
            k, v, orders = _problem.readable(k), _problem.readable(v), None
        else:
            k, v = _problem.sendable(k), _problem.sendable(v)
            orders = (_problem.order(k), _problem.order(v))
        problem = (q.shape, k.shape, q.dtype, is_causal, scale, sequence_layout.upper(), orders)
        plan, validated = self._plan(*problem)
        scratch = self._scratch(plan, q)
        args = self._args(
            problem,
            *((x.data_ptr(), x.stride()) for x in (q, k, v, y)),
            lse.data_ptr(),
            *(x.data_ptr() for x in scratch),
        )
        if not validated:
            plan.validate(self._comm, args)
            validated.append(True)
        handle = torch.cuda.current_stream(self.device).cuda_stream if self._ordinal >= 0 else None
        plan.run(self._stream(handle), self._comm, args)
        return y, lse

    def _scratch(self, plan: RingAttentionPlan, q: torch.Tensor) -> list[torch.Tensor]:
        """The state and the receive buffers: none at P = 1, one buffer at P = 2, else two."""
        if self._world_size == 1:
            return []
        state = q.new_empty(plan.accumulator_scratch_bytes, dtype=torch.uint8)
        buffers = min(self._world_size - 1, 2)
        return [state, *(q.new_empty(plan.kv_scratch_elements) for _ in range(buffers))]

    def _make_stream(self, handle: int | None) -> Stream:
        return Stream.host() if handle is None else Stream(handle, device=self._ordinal)

    def _make_plan(
        self,
        q_shape: torch.Size,
        k_shape: torch.Size,
        dtype: torch.dtype,
        is_causal: bool,
        scale: float | None,
        sequence_layout: str,
        orders: Any,
    ) -> tuple[RingAttentionPlan, list[bool]]:
        """The plan, and a list that is empty until the ranks have agreed on it."""
        _refuse_capture(self.device)
        descriptor = RingAttentionDescriptor(
            *q_shape[:3],
            *k_shape[2:],
            scale=scale,
            is_causal=is_causal,
            element=_problem.ELEMENTS[dtype],
            num_kv_heads=k_shape[1],
            sequence_layout=sequence_layout,
        )
        plan = RingAttentionPlan.select(self._stream(0 if self._ordinal >= 0 else None), descriptor)
        return plan, [True] if self._world_size == 1 else []

    def _make_args(
        self, problem: tuple, q: tuple, k: tuple, v: tuple, y: tuple, lse: int, *scratch: int
    ) -> RingAttentionArgs:
        """Views of addresses alone: they own nothing, so they may outlive the tensors."""
        q_shape, k_shape, dtype = problem[:3]
        plan, _ = self._plan(*problem)
        element = _problem.ELEMENTS[dtype]
        lse_element = "F64" if dtype is torch.float64 else "F32"

        def view(address: int, shape: Any, strides: Any, kind: Any) -> TensorRef:
            return TensorRef(address, shape, strides, kind, device=self._ordinal)

        sizes = [plan.accumulator_scratch_bytes, plan.kv_scratch_elements, plan.kv_scratch_elements]
        buffers = [
            view(address, (size,), None, kind)
            for address, size, kind in zip(scratch, sizes, ("U8", element, element), strict=False)
        ]
        names = ("accumulator_scratch", "kv_scratch_a", "kv_scratch_b")
        return RingAttentionArgs(
            q=view(q[0], q_shape, q[1], element),
            k=view(k[0], k_shape, k[1], element),
            v=view(v[0], k_shape, v[1], element),
            y=view(y[0], q_shape, y[1], element),
            lse=view(lse, q_shape[:3], None, lse_element),
            **dict(zip(names, buffers, strict=False)),
        )


def _refuse_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise InvalidProblemError(
            "q: the first call of a problem cannot be captured into a CUDA graph (it makes "
            "communicators and loads kernels); call it once before the capture"
        )
