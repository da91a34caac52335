"""One ring per process group and device, with its communicator and plans."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels import (
    Communicator,
    RingAttentionArgs,
    RingAttentionPlan,
    Stream,
    TransportCommunicator,
)
from baracuda_kernels.errors import BaracudaError, UnsupportedError
from baracuda_kernels.interop.torch import _problem, _process_group
from baracuda_kernels.interop.torch._agreement import Agreement
from baracuda_kernels.interop.torch._buffers import Buffers
from baracuda_kernels.interop.torch._call import Call, keep, view_of
from baracuda_kernels.interop.torch._gradients import Gradients
from baracuda_kernels.interop.torch._problem import descriptor_of, problem_of, refuse_capture
from baracuda_kernels.interop.torch._refusal_message import as_told
from baracuda_kernels.ops.ring_attention import _agreement

_KV = ("kv_scratch_a", "kv_scratch_b")
_NOTHING: dict[str, torch.Tensor] = {}

_rings: dict[tuple[str, torch.device], Ring] = {}


def ring_of(group_name: str, device: torch.device) -> Ring:
    """The ring over a group on a device. Making it is collective."""
    group = _process_group.resolve(group_name)
    ring = _rings.get((group_name, device))
    # A new group may have the name of a destroyed one.
    if ring is None or ring.group is not group:
        if device.type not in ("cpu", "cuda"):
            raise UnsupportedError(f"q: got device {device}, must be cpu or cuda")
        refuse_capture(device)
        if ring is not None:
            ring.close()
        comm = _process_group.communicator(group, device)
        ring = _rings[group_name, device] = Ring(group, device, comm)
    return ring


def find_ring(group_name: str, device: torch.device) -> Ring | None:
    """The ring over a group on a device, or None if no call has made it."""
    return _rings.get((group_name, device))


@atexit.register
def clear_cache() -> None:
    """Close every communicator and drop every plan in the cache.

    Not collective. The next call of each group makes new ones. Call it before
    ``torch.distributed.destroy_process_group`` to free NCCL's memory.
    """
    while _rings:
        _rings.popitem()[1].close()


class Ring:
    """The ring over a process group on one device: its communicator, plans and caches."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, comm: Any) -> None:
        self.group = group
        self.device = device
        self.ordinal = -1 if device.type == "cpu" else device.index
        self.comm = comm
        # On CUDA a comparison would wait for the GPU, so only new problems are compared. On the CPU
        # every call is compared: it costs little, and with gloo ranks that differ would crash.
        self._agreement: Agreement | None = None
        if isinstance(comm, TransportCommunicator):
            self._agreement = Agreement(group)
        # Forward calls so far, the same on every rank; and during a backward on the CPU the number of
        # the forward call whose gradients it gives, if that is known.
        self.forwards = 0
        self.forward_of_backward: int | None = None
        # Every rank makes the same calls, so all ranks clear these caches in the same call.
        self._plans: dict[tuple[Any, ...], tuple[RingAttentionPlan, torch.Tensor]] = {}
        self._agreed: set[tuple[Any, ...]] = set()
        # Cached by addresses, since allocators give the same addresses again and again.
        self._args: dict[tuple[Any, ...], tuple[RingAttentionArgs, bytes]] = {}
        self._gradients = Gradients(self)
        self._streams: dict[int, Stream] = {-1: Stream.host()}
        self.buffers = Buffers(comm, device)

    def close(self) -> None:
        # A plan keeps device memory, and this ring is in a reference cycle. If the garbage
        # collector freed the memory later, during a graph capture, CUDA would refuse.
        self.buffers.close()
        self._forget_addresses()
        self._plans.clear()
        self._gradients.forget_plans()
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
        with_gradient: bool,
    ) -> Any:
        """y and lse of the rows of q over the keys of the whole ring. Collective."""
        arguments = q, k, v, is_causal, scale, sequence_layout, with_gradient
        answer = self._run(self._prepare, arguments)
        self.forwards += 1
        return answer

    def gradients(self, *arguments: Any) -> Any:
        """dq, dk and dv of this rank's rows. Collective. Arguments are those of
        `Gradients.prepare`."""
        return self._run(self._gradients.prepare, arguments, self.forward_of_backward)

    def _run(
        self, prepare: Callable[..., Call], arguments: tuple[Any, ...], number: int | None = None
    ) -> tuple[torch.Tensor, ...]:
        try:
            plan, args, side, outputs, new, travel, _held = prepare(*arguments)
        except Exception as error:
            self.refuse(as_told(error))  # an out-of-memory too: the other ranks wait for this one
            raise
        if self._agreement is not None:
            self._agreement.require(side, number)
        elif new is not None:
            self._agree(new, plan, args)
            if self._make_room(travel):
                return self._run(prepare, arguments)
        if self.buffers.by_peer:
            self.buffers.follow_last_stream()
        plan.run(self.stream(), self.comm, args)
        return outputs

    def _make_room(self, travel: Mapping[str, torch.Tensor]) -> bool:
        """Register larger receive buffers, if the call needs them; True if it does. Collective."""
        try:
            try:
                room = self.buffers.allocate(travel)
            except Exception as error:
                self.refuse(as_told(error))  # the other ranks may wait in `register`
                raise
            self.buffers.register(room)
        except BaseException:
            self._forget_addresses()  # of buffers that are not registered
            raise
        return bool(room)

    def exchange(self, mine: bytes) -> list[bytes]:
        """The messages of all ranks before a collective call on the CPU. Collective."""
        assert self._agreement is not None
        return self._agreement.exchange(mine.ljust(_agreement.MESSAGE_BYTES))

    def refuse(self, error: BaracudaError) -> None:
        """Send the error that this rank raises to the ranks that wait for it."""
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
        with_gradient: bool,
    ) -> Call:
        """Make a call of this rank, before the other ranks are asked."""
        problem = problem_of(q, k, v, is_causal, scale, sequence_layout)
        try:
            selected = self._plans.get(problem)
        except TypeError:  # of an option that is not hashable: the descriptor refuses it by name
            _problem.check(q, k, v, sequence_layout)
            descriptor_of(problem)
            raise
        if selected is None:
            _problem.check(q, k, v, sequence_layout)
            selected = self._select(problem, q)
        if with_gradient:  # refuse a problem without a backward now
            self._gradients.plan(problem)
        plan, form = selected
        y = _problem.empty_like(q)
        lse = torch.empty_like(form, memory_format=torch.contiguous_format)
        travel = scratch = _NOTHING
        if self.comm.world_size > 1:
            travel = self.receive_buffers(plan.kv_scratch_elements, q)
            nbytes = plan.accumulator_scratch_bytes
            scratch = {"accumulator_scratch": q.new_empty(nbytes, dtype=torch.uint8), **travel}
        places = (plan, q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr(), lse.data_ptr(),
                  q.stride(), k.stride(), v.stride(), *[x.data_ptr() for x in scratch.values()])  # fmt: skip
        held: tuple[Any, ...] = (q, k, v)
        new = None
        kept = self._args.get(places)
        if kept is None:
            suited = _problem.sendable if self.comm.world_size > 1 else _problem.readable
            held = read = (_problem.readable(q), suited(k), suited(v))
            views = {name: view_of(x, self.ordinal) for name, x in zip(
                ("q", "k", "v", "y", "lse", *scratch), (*read, y, lse, *scratch.values()),
                strict=True)}  # fmt: skip
            args = RingAttentionArgs(**views)
            side, new = self.compared(plan, args, problem, read[1], read[2])
            kept = args, side
            if read[0] is q and read[1] is k and read[2] is v:
                keep(self._args, places, kept)
        return (plan, *kept, (y, lse), new, travel, (held, scratch))

    def compared(
        self, plan: Any, args: Any, problem: tuple[Any, ...], k: torch.Tensor, v: torch.Tensor
    ) -> tuple[bytes, tuple[Any, ...] | None]:
        """For new arguments: the bytes that the ranks compare on the CPU, and the problem that they
        compare on CUDA, or None."""
        plan.can_implement(args, self.comm.world_size)
        if self._agreement is not None:
            return _agreement.encode(plan.descriptor, plan.sku.direction, args), None
        if self.comm.world_size == 1:
            return b"", None
        new = (plan.sku.direction, problem, _problem.order(k), _problem.order(v))
        if new not in self._agreed:
            refuse_capture(self.device)
        return b"", new

    def _select(
        self, problem: tuple[Any, ...], q: torch.Tensor
    ) -> tuple[RingAttentionPlan, torch.Tensor]:
        refuse_capture(self.device)
        plan = RingAttentionPlan.select(descriptor_of(problem), self.stream())
        selected = plan, _problem.lse_form(q)
        if keep(self._plans, problem, selected):
            self.agree_anew()
        return selected

    def agree_anew(self) -> None:
        """Compare every problem again in its next call."""
        self._agreed.clear()
        self._forget_addresses()

    def _forget_addresses(self) -> None:
        # The ranks have agreed on the arguments in these caches.
        self._args.clear()
        self._gradients.forget_addresses()

    def _agree(self, new: tuple[Any, ...], plan: Any, args: Any) -> None:
        """Compare a new problem among the ranks: ranks with different problems would misread each
        other's messages."""
        if new in self._agreed:
            return
        try:
            plan.validate(self.comm, args)
        except BaseException:
            self._forget_addresses()
            raise
        self._agreed.add(new)

    def receive_buffers(
        self, elements: int, q: torch.Tensor, most: int = 2
    ) -> dict[str, torch.Tensor]:
        """The receive buffers of K and V, by argument: P - 1, at most `most`."""
        names = _KV[: min(most, self.comm.world_size - 1)]
        return {name: self.buffers.of(name, elements, q, q.dtype) for name in names}

    def stream(self) -> Stream:
        """This thread's current PyTorch stream on the ring's device."""
        handle = -1
        if self.ordinal >= 0:
            # torch.cuda.current_stream makes an object, which takes 5 us.
            handle = torch._C._cuda_getCurrentRawStream(self.ordinal)
        stream = self._streams.get(handle)
        if stream is None:
            stream = self._streams[handle] = Stream(handle, device=self.ordinal)
        return stream
