"""One ring per process group and device, with its communicator and plans."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
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
    TransportCommunicator,
)
from baracuda_kernels._core._device_buffer import DeviceBuffer
from baracuda_kernels.errors import BaracudaError, InvalidProblemError, UnsupportedError
from baracuda_kernels.interop.torch import _problem, _process_group
from baracuda_kernels.interop.torch._agreement import Agreement
from baracuda_kernels.ops.ring_attention import _agreement

# Plans, and argument views, that a ring keeps before it begins anew.
_KEPT = 1024

_rings: dict[tuple[str, torch.device], Ring] = {}


def ring_of(group_name: str, device: torch.device) -> Ring:
    """The ring over that group on that device; making it is collective."""
    group = _process_group.resolve(group_name)
    ring = _rings.get((group_name, device))
    # A destroyed group's name may be given to a new one.
    if ring is None or ring.group is not group:
        if ring is not None:
            ring.close()
        if device.type not in ("cpu", "cuda"):
            raise UnsupportedError(f"q: lies on {device}, must lie on cpu or cuda")
        _refuse_capture(device)
        comm = _process_group.communicator(group, device)
        ring = _rings[group_name, device] = Ring(group, device, comm)
    return ring


@atexit.register
def clear_cache() -> None:
    """Close every communicator and drop every plan that calls have left in the cache.

    Not collective. The next call of each group makes them anew. Call it before
    ``torch.distributed.destroy_process_group`` to give NCCL's memory back.
    """
    while _rings:
        _rings.popitem()[1].close()


# The plan and its arguments; what the other ranks compare, on the CPU alone; y, lse; on CUDA what they
# may have to compare; and what else the arguments point to, for they own nothing.
_Call = tuple[
    RingAttentionPlan,
    RingAttentionArgs,
    bytes,
    torch.Tensor,
    torch.Tensor,
    tuple[Any, ...] | None,
    tuple[Any, ...],
]


class Ring:
    """The ranks of a process group on one kind of device."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, comm: Any) -> None:
        self.group = group
        self._device = device
        self._ordinal = -1 if device.type == "cpu" else device.index
        self.comm = comm
        # On CUDA a comparison would wait for the GPU, and is for new problems alone. Elsewhere it
        # costs little, and ranks that misread each other bring the process down (gloo).
        self._agreement: Agreement | None = None
        if isinstance(comm, TransportCommunicator):
            self._agreement = Agreement(group)
        # Every rank makes the same calls, so all forget and agree anew at the same calls.
        self._plans: dict[tuple[Any, ...], RingAttentionPlan] = {}
        self._agreed: set[tuple[Any, ...]] = set()
        # Allocators hand out the same addresses again and again.
        self._args: dict[tuple[Any, ...], tuple[RingAttentionArgs, bytes]] = {}
        self._streams: dict[int, Stream] = {-1: Stream.host()}
        # What the copy engines of the rank before write to. They are this ring's own: memory of
        # PyTorch's allocator may be of a kind that no other process can open, and comes and goes.
        self._by_peer = isinstance(self.comm, Communicator) and any(
            hop.kind == "peer" for hop in self.comm.exchange
        )
        self._room = 0
        self._receive: list[torch.Tensor] = []
        self._last_stream: int | None = None

    def close(self) -> None:
        self._receive.clear()
        self._args.clear()
        if isinstance(self.comm, Communicator):
            self.comm.close()

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
        try:
            plan, args, side, y, lse, new, _held = self._prepare(
                q, k, v, is_causal, scale, sequence_layout
            )
        except BaracudaError as error:
            self.refuse(error)
            raise
        if self._agreement is not None:
            self._agreement.require(side)
        elif new is not None:
            self._agree(new, plan, args)
            if self._by_peer and self._make_room(plan, q):
                return self.attend(q, k, v, is_causal, scale, sequence_layout)
        if self._by_peer:
            self._follow_last_stream()
        plan.run(self._stream(), self.comm, args)
        return y, lse

    def refuse(self, error: BaracudaError) -> None:
        """Give the other ranks, which wait for this one, the error that it raises instead."""
        if self._agreement is not None:
            self._agreement.refuse(error)
        elif isinstance(self.comm, Communicator) and self.comm.state == "healthy":
            self.comm.refuse(error)

    def _prepare(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        is_causal: bool,
        scale: float | None,
        sequence_layout: str,
    ) -> _Call:
        """Everything of a call but what needs the other ranks, and this rank's side of it."""
        problem = (q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, k.device, v.device,
                   is_causal, scale, sequence_layout)  # fmt: skip
        plan = self._plans.get(problem)
        if plan is None:
            _problem.check(q, k, v, sequence_layout)
            plan = self._select(problem)
        y, lse = _problem.outputs(q)
        scratch = self._scratch(plan, q) if self.comm.world_size > 1 else ()
        places = (plan, q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr(), lse.data_ptr(),
                  q.stride(), k.stride(), v.stride(), *(x.data_ptr() for x in scratch))  # fmt: skip
        held: tuple[Any, ...] = (q, k, v)
        new = None
        kept = self._args.get(places)
        if kept is None:
            suited = _problem.sendable if self.comm.world_size > 1 else _problem.readable
            held = read = (_problem.readable(q), suited(k), suited(v))
            args, side = _args_of(plan, read, y, lse, scratch, self._ordinal), b""
            plan.can_implement(args, self.comm.world_size)
            if self._agreement is not None:
                side = _agreement.encode(plan.descriptor, args)
            elif self.comm.world_size > 1:
                new = (problem, _problem.order(read[1]), _problem.order(read[2]))
                if new not in self._agreed:
                    _refuse_capture(self._device)
            kept = args, side
            if read[0] is q and read[1] is k and read[2] is v:
                _keep(self._args, places, kept)
        return (plan, *kept, y, lse, new, (held, scratch))

    def _select(self, problem: tuple[Any, ...]) -> RingAttentionPlan:
        _refuse_capture(self._device)
        q_shape, k_shape, _, dtype, *_, is_causal, scale, sequence_layout = problem
        descriptor = RingAttentionDescriptor(
            q_shape[0],
            q_shape[1],
            q_shape[2],
            k_shape[2],
            k_shape[3],
            scale=scale,
            is_causal=is_causal,
            element=_problem.ELEMENTS[dtype],
            num_kv_heads=k_shape[1],
            sequence_layout=sequence_layout,
        )
        plan = RingAttentionPlan.select(self._stream(), descriptor)
        if len(self._plans) >= _KEPT:
            self._agreed.clear()
        _keep(self._plans, problem, plan)
        return plan

    def _agree(
        self, new: tuple[Any, ...], plan: RingAttentionPlan, args: RingAttentionArgs
    ) -> None:
        """Compare a new problem among the ranks: those that differ would misread each other."""
        if new in self._agreed:
            return
        try:
            plan.validate(self.comm, args)
        except BaseException:
            self._args.clear()  # what is kept there counts as agreed on
            raise
        self._agreed.add(new)

    def _scratch(self, plan: RingAttentionPlan, q: torch.Tensor) -> list[torch.Tensor]:
        """The state and the receive buffers: one at P = 2, else two."""
        state = q.new_empty(plan.accumulator_scratch_bytes, dtype=torch.uint8)
        buffers = min(self.comm.world_size - 1, 2)
        if 0 < plan.kv_scratch_elements * q.itemsize <= self._room:
            own = (x.view(q.dtype)[: plan.kv_scratch_elements] for x in self._receive)
            return [state, *own]
        return [state, *(q.new_empty(plan.kv_scratch_elements) for _ in range(buffers))]

    def _make_room(self, plan: RingAttentionPlan, q: torch.Tensor) -> bool:
        """Registers larger receive buffers if this problem needs them; whether it did. Collective: all
        ranks have agreed on the problem. Earlier ones stay, for graphs that have captured them."""
        needed = plan.kv_scratch_elements * q.itemsize
        if needed <= self._room:
            return False
        self._receive.clear()
        for _ in range(min(self.comm.world_size - 1, 2)):
            buffer = DeviceBuffer(needed, self._ordinal)
            self.comm.register(buffer)
            self._receive.append(torch.as_tensor(buffer, device=self._device))
        self._room = needed
        return True

    def _follow_last_stream(self) -> None:
        """The receive buffers are those of the last call, which may still read them."""
        handle = torch._C._cuda_getCurrentRawStream(self._ordinal)
        if handle == self._last_stream or torch.cuda.is_current_stream_capturing():
            return
        if self._last_stream is not None:
            last = torch.cuda.ExternalStream(self._last_stream, device=self._device)
            torch.cuda.current_stream(self._device).wait_stream(last)
        self._last_stream = handle

    def _stream(self) -> Stream:
        handle = -1
        if self._ordinal >= 0:
            # torch.cuda.current_stream makes an object of 5 us to say the same.
            handle = torch._C._cuda_getCurrentRawStream(self._ordinal)
        stream = self._streams.get(handle)
        if stream is None:
            stream = self._streams[handle] = Stream(handle, device=self._ordinal)
        return stream


def _args_of(
    plan: RingAttentionPlan,
    read: tuple[torch.Tensor, ...],
    y: torch.Tensor,
    lse: torch.Tensor,
    scratch: Sequence[torch.Tensor],
    ordinal: int,
) -> RingAttentionArgs:
    """Views of addresses alone: they own nothing, so they may outlive the tensors."""

    def view(x: torch.Tensor) -> TensorRef:
        element = "U8" if x.dtype is torch.uint8 else _problem.ELEMENTS[x.dtype]
        return TensorRef(x.data_ptr(), x.shape, x.stride(), element, device=ordinal)

    names = ("accumulator_scratch", "kv_scratch_a", "kv_scratch_b")
    buffers = {name: view(x) for name, x in zip(names, scratch, strict=False)}
    q, k, v = map(view, read)
    return RingAttentionArgs(q=q, k=k, v=v, y=view(y), lse=view(lse), **buffers)


def _keep(cache: dict[Any, Any], key: tuple[Any, ...], value: Any) -> None:
    if len(cache) >= _KEPT:
        cache.clear()
    cache[key] = value


def _refuse_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise InvalidProblemError(
            "q: the first call of a problem cannot be captured into a CUDA graph (it makes "
            "communicators and loads kernels); call it once before the capture"
        )
