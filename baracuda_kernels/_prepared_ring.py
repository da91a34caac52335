"""A local ring over whole arrays: sharded and staged, ready for any number of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from baracuda_kernels._arguments import array, flag, integer, layout_of, library_of, number
from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels._local_memory import element_of, memory_for
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.ops.attention._descriptor import accumulator_of
from baracuda_kernels.sharding import MAX_RANKS, rows_per_rank, shard, unshard

if TYPE_CHECKING:
    from baracuda_kernels import RingTimeline

__all__ = ["PreparedRing"]


class PreparedRing:
    """A local ring over whole arrays: sharded and staged, ready for any number of runs.

    Attributes
    ----------
    plan : RingAttentionPlan
    gradient_plan : RingAttentionBackwardPlan or None
        None if no gradient of y was given.
    ring : LocalRing
        The ring of the forward.
    rings : list of LocalRing
        One ring for each direction, in the order in which they run.
    stream : Stream
        A stream on the device of the arrays.
    """

    def __init__(
        self,
        q: Any,
        k: Any,
        v: Any,
        world_size: int,
        *,
        is_causal: bool,
        scale: float | None,
        sequence_layout: SequenceLayout | str,
        device: Any,
        dy: Any = None,
        dlse: Any = None,
    ) -> None:
        from baracuda_kernels import (
            LocalCommunicator,
            RingAttentionBackwardPlan,
            RingAttentionDescriptor,
            RingAttentionPlan,
        )

        self._layout = layout = layout_of(sequence_layout)
        world_size = integer("world_size", world_size, least=1, most=MAX_RANKS)
        is_causal = flag("is_causal", is_causal)
        scale = None if scale is None else number("scale", scale)
        if library_of(q) == "torch":
            _refuse_what_torch_hides({"q": q, "k": k, "v": v, "dy": dy, "dlse": dlse})
        q, k, v = array("q", q), array("k", k), array("v", v)
        self._memory = memory = memory_for(q, device)
        _check(q, k, v, world_size)
        element = element_of(q, "q")
        if dlse is not None and dy is None:
            raise InvalidProblemError("dlse: got an array without dy, must be given with dy")
        dy = None if dy is None else _like("dy", array("dy", dy), q, q.shape, q.dtype)
        lse_dtype = accumulator_of(element).dtype_name
        dlse = None if dlse is None else _like("dlse", array("dlse", dlse), q, q.shape[:3], lse_dtype)
        batch, heads, total_queries, head_dim = (int(n) for n in q.shape)
        kv_heads, total_keys = int(k.shape[1]), int(k.shape[2])
        descriptor = RingAttentionDescriptor(
            batch,
            heads,
            total_queries // world_size,
            total_keys // world_size,
            head_dim,
            scale=scale,
            is_causal=is_causal,
            element=element,
            num_kv_heads=kv_heads,
            sequence_layout=layout,
        )
        self.stream = memory.stream
        self.plan = RingAttentionPlan.select(descriptor, self.stream)
        self.gradient_plan = None
        if dy is not None:
            self.gradient_plan = RingAttentionBackwardPlan.select(descriptor, self.stream)

        def shards(x: Any) -> list[Any]:
            if x is None:
                return [None] * world_size
            return [memory.stage(s) for s in shard(x, world_size, sequence_layout=layout)]

        self._ranks = [
            _Rank(memory, self.plan, self.gradient_plan, given, world_size)
            for given in zip(*map(shards, (q, k, v, dy, dlse)), strict=True)
        ]
        self.rings = [
            LocalCommunicator.ring(world_size, device=memory.ring_device)
            for plan in (self.plan, self.gradient_plan)
            if plan is not None
        ]
        self.ring = self.rings[0]

    def run(self, timeline: list[RingTimeline] | None = None) -> None:
        """Enqueue one run of all ranks in every direction. `timeline` has the timelines of the
        ranks for the forward."""
        self.ring.run_all(
            self.stream, self.plan, [rank.args for rank in self._ranks], timeline=timeline
        )
        if self.gradient_plan is not None:
            self.rings[1].run_all(
                self.stream, self.gradient_plan, [rank.gradient_args for rank in self._ranks]
            )

    def outputs(self) -> tuple[Any, ...]:
        """y and lse of the last run, gathered; with gradients also dq, dk and dv."""
        return tuple(
            unshard([self._memory.fetch(x) for x in shards], sequence_layout=self._layout)
            for shards in zip(*(rank.outputs for rank in self._ranks), strict=True)
        )


class _Rank:
    """One virtual rank's arrays, and the arguments that view them."""

    def __init__(
        self, memory: Any, plan: Any, gradient_plan: Any, given: tuple[Any, ...], world_size: int
    ) -> None:
        from baracuda_kernels import RingAttentionArgs, RingAttentionBackwardArgs

        # Arguments over raw addresses do not keep the memory alive, so this object does.
        self._given = given
        q, k, v, dy, dlse = given
        desc = plan.descriptor
        dtype = desc.element.dtype_name
        rows = (desc.batch_size, desc.num_heads, desc.query_len)
        y = memory.empty((*rows, desc.head_dim), dtype)
        lse = memory.empty(rows, accumulator_of(desc.element).dtype_name)
        self.outputs = [y, lse]
        received = {}
        if world_size > 1:
            received = {
                "kv_scratch_a": memory.empty((plan.kv_scratch_elements,), dtype),
                "kv_scratch_b": memory.empty((plan.kv_scratch_elements,), dtype),
            }

        def scratch(nbytes: int) -> Any:
            return memory.empty((nbytes,), "uint8") if world_size > 1 else None

        operands = {"q": q, "k": k, "v": v, "y": y, "lse": lse, **received}
        forward = operands | {"accumulator_scratch": scratch(plan.accumulator_scratch_bytes)}
        self._held = [forward]
        self.args = RingAttentionArgs(**_operands(memory, forward))
        if gradient_plan is None:
            return
        gradients = {"dq": memory.empty((*rows, desc.head_dim), dtype)}
        keys = (desc.batch_size, desc.num_kv_heads, desc.key_len, desc.head_dim)
        gradients |= {name: memory.empty(keys, dtype) for name in ("dk", "dv")}
        self.outputs += gradients.values()
        backward = operands | gradients | {
            "dy": dy,
            "dlse": dlse,
            "scratch": memory.empty((gradient_plan.scratch_bytes,), "uint8"),
            "kv_gradient_scratch": scratch(gradient_plan.kv_gradient_scratch_bytes),
        }
        self._held.append(backward)
        self.gradient_args = RingAttentionBackwardArgs(**_operands(memory, backward))


def _operands(memory: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: None if x is None else memory.operand(x) for name, x in arrays.items()}


def _dtype_of(x: Any) -> Any:
    # A memoryview has a shape and no dtype.
    return getattr(x, "dtype", "no dtype")


def _like(name: str, x: Any, q: Any, shape: Any, dtype: Any) -> Any:
    if library_of(x) != library_of(q) or str(_dtype_of(x)).removeprefix("torch.") != str(
        dtype
    ).removeprefix("torch."):
        raise InvalidProblemError(
            f"{name}: got {type(x).__name__} of {_dtype_of(x)}, must be {type(q).__name__} of "
            f"{dtype}"
        )
    if tuple(x.shape) != tuple(shape):
        raise InvalidProblemError(f"{name}: got shape {tuple(x.shape)}, must be {tuple(shape)}")
    return x


def _check(q: Any, k: Any, v: Any, world_size: int) -> None:
    library = library_of(q)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if len(x.shape) != 4:
            raise InvalidProblemError(
                f"{name}: got shape {tuple(x.shape)}, must be [B, H, S, D]"
            )
        if library_of(x) != library or _dtype_of(x) != q.dtype:
            raise InvalidProblemError(
                f"{name}: got {type(x).__name__} of {_dtype_of(x)}, must be as q, "
                f"{type(q).__name__} of {q.dtype}"
            )
    if tuple(k.shape) != tuple(v.shape):
        raise InvalidProblemError(
            f"k, v: got shapes {tuple(k.shape)} and {tuple(v.shape)}, must be equal"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise InvalidProblemError(
            f"q, k: got shapes {tuple(q.shape)} and {tuple(k.shape)}, must have equal batch and "
            "head_dim"
        )
    for name, x in (("q", q), ("k, v", k)):
        rows_per_rank(int(x.shape[2]), world_size, name)


def _refuse_what_torch_hides(given: dict[str, Any]) -> None:
    """Refuse derivatives and traces that would miss this call, and tensors that are not strided or
    not on q's device."""
    import torch  # loaded already, as the tensors' library

    from baracuda_kernels._torch_transforms import refuse_derivatives, refuse_tracing

    call, instead = "run_local_ring", "give dy for the gradients"
    tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)}
    refuse_derivatives(call, tensors, instead)
    refuse_tracing(call)
    for name, x in tensors.items():
        if x.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(
                f"{name}: got a tensor that requires grad, must be detached or used under "
                f"torch.no_grad(): autograd does not record this call ({instead})"
            )
        if x.is_nested or x.layout is not torch.strided:
            layout = "a nested layout" if x.is_nested else f"layout {x.layout}"
            raise InvalidProblemError(f"{name}: got a tensor of {layout}, must be torch.strided")
        if x.device != tensors["q"].device:
            raise InvalidProblemError(
                f"{name}: got a tensor on {x.device}, must be on q's device, {tensors['q'].device}"
            )
