"""Ring attention on whole arrays, over virtual ranks in this process, in one call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar, overload

from baracuda_kernels._arguments import array, flag, integer, layout_of, library_of, number
from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels._core._info import HostProgress
from baracuda_kernels._local_memory import element_of, memory_for
from baracuda_kernels.errors import (
    CommunicatorError,
    InvalidProblemError,
    NcclTimeoutError,
    UnsupportedError,
)
from baracuda_kernels.ops.attention._descriptor import accumulator_of
from baracuda_kernels.sharding import MAX_RANKS, rows_per_rank, shard, unshard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from baracuda_kernels import RingAttentionPlan, RingTimeline

    _Scalar = TypeVar("_Scalar", bound=np.generic)

__all__ = ["run_local_ring"]

_Array = TypeVar("_Array")

# Seconds between two looks at how far the ranks have come.
_POLL = 0.05


@overload
def run_local_ring(
    q: NDArray[_Scalar],
    k: NDArray[_Scalar],
    v: NDArray[_Scalar],
    world_size: int,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    device: Any = "host",
    progress: Callable[[float, int], None] | None = None,
    timeout: float | None = None,
) -> tuple[NDArray[_Scalar], NDArray[np.floating[Any]]]: ...
@overload
def run_local_ring(
    q: Sequence[Any],
    k: Sequence[Any],
    v: Sequence[Any],
    world_size: int,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    device: Any = "host",
    progress: Callable[[float, int], None] | None = None,
    timeout: float | None = None,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]: ...
@overload
def run_local_ring(
    q: _Array,
    k: _Array,
    v: _Array,
    world_size: int,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    device: Any = "host",
    progress: Callable[[float, int], None] | None = None,
    timeout: float | None = None,
) -> tuple[_Array, _Array]: ...
def run_local_ring(
    q: Any,
    k: Any,
    v: Any,
    world_size: int,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    sequence_layout: SequenceLayout | str = "contiguous",
    device: Any = "host",
    progress: Callable[[float, int], None] | None = None,
    timeout: float | None = None,
) -> tuple[Any, Any]:
    """Exact attention of whole arrays, computed by a ring of virtual ranks in this process.

    Shards the sequence over `world_size` ranks of a `LocalCommunicator` ring, runs every rank's
    `RingAttentionPlan` and gathers the outputs. It allocates the operands and scratch itself: for
    trying, testing and checking. Engines that own their memory use the plan. The only mask is the
    causal one; there is no window and no dropout.

    Parameters
    ----------
    q : array
        ``[B, H, S, D]``; float16, bfloat16, float32 or float64. A NumPy array (bfloat16 by
        ml_dtypes; a memmap too, and nested lists, which are float64), a PyTorch tensor or a CuPy
        array. Masked arrays, and tensors whose gradient is recorded, are refused.
    k, v : array
        ``[B, Hkv, Sk, D]`` of the same kind and dtype, ``H % Hkv == 0``.
    world_size : int
        Virtual ranks, 1 to 65536, which share the sequence; S and Sk must be multiples of it.
    is_causal : bool, default False
        Global row ``i`` sees the keys ``j <= i``.
    scale : float, optional
        Factor on ``q·k``; default ``1 / sqrt(D)``.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.
    device : str or torch.device, default "host"
        ``"host"`` (or ``"cpu"``), ``"cuda"`` or ``"cuda:N"``: where the ring runs. NumPy arrays
        (through cuda.core, the extra ``[cu13]`` or ``[cu12]``) and CPU tensors are copied there and
        back; arrays on a GPU must name their own device.
    progress : callable, optional
        Called from this thread as ``progress(done, total)``, in rank-steps: every rank takes
        `world_size` steps. On the host `done` moves within a step too, and never falls.
    timeout : float, optional
        Seconds that a run on the host may take; it is stopped at the end of the step in which they
        pass. A run on a GPU cannot be stopped and takes none. By default there is no limit.

    Returns
    -------
    y : array
        ``[B, H, S, D]``, of the kind and dtype of `q` and on its device.
    lse : array
        ``[B, H, S]``, float64 for float64 operands, else float32; natural log, -inf in rows that
        see no key.

    Raises
    ------
    InvalidProblemError
        Shapes, dtypes, devices or the layout do not fit; an uneven S is answered with the nearest
        lengths that fit.
    UnsupportedError
        No kernel serves the problem on that device, cuda.core is missing for NumPy arrays, a
        gradient is asked for, or a `timeout` on a GPU.
    NcclTimeoutError
        `timeout` passed.
    CudaError
        The device failed.
    KeyboardInterrupt
        Ctrl-C, and on the host within half a second; also whatever else `progress` raises.
    """
    y, lse, _ = run_with_plan(
        q,
        k,
        v,
        world_size,
        is_causal=is_causal,
        scale=scale,
        sequence_layout=sequence_layout,
        device=device,
        progress=progress,
        timeout=timeout,
    )
    return y, lse


def run_with_plan(
    q: Any,
    k: Any,
    v: Any,
    world_size: int,
    *,
    progress: Callable[[float, int], None] | None,
    timeout: float | None,
    **options: Any,
) -> tuple[Any, Any, RingAttentionPlan]:
    """`run_local_ring`, with the plan that ran as a third result; `options` of `PreparedRing`."""
    if timeout is not None:
        timeout = number("timeout", timeout)
        if not timeout > 0:
            raise InvalidProblemError(f"timeout: got {timeout:g}, must be more than 0 seconds")
    prepared = PreparedRing(q, k, v, world_size, **options)
    if timeout is not None and prepared.plan.device >= 0:
        raise UnsupportedError(
            f"timeout: got {timeout:g}, must not be given on a GPU: what was enqueued there "
            "cannot be stopped"
        )
    if progress is None and timeout is None:
        prepared.run()
    else:
        _run_watched(prepared, progress, math.inf if timeout is None else timeout)
    y, lse = prepared.outputs()
    return y, lse, prepared.plan


class PreparedRing:
    """A local ring over whole arrays: sharded and staged, ready for any number of runs.

    Attributes
    ----------
    plan : RingAttentionPlan
    ring : LocalRing
    stream : Stream
        Of the memory that the arrays lie in.
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
    ) -> None:
        from baracuda_kernels import LocalCommunicator, RingAttentionDescriptor, RingAttentionPlan

        self._layout = layout = layout_of(sequence_layout)
        world_size = integer("world_size", world_size, least=1, most=MAX_RANKS)
        is_causal = flag("is_causal", is_causal)
        scale = None if scale is None else number("scale", scale)
        q, k, v = array("q", q), array("k", k), array("v", v)
        self._memory = memory = memory_for(q, device)
        _check(q, k, v, world_size)
        batch, heads, total_queries, head_dim = (int(n) for n in q.shape)
        kv_heads, total_keys = int(k.shape[1]), int(k.shape[2])
        element = element_of(q, "q")
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
        self.plan = RingAttentionPlan.select(self.stream, descriptor)
        shards = [shard(x, world_size, sequence_layout=layout) for x in (q, k, v)]
        self._ranks = [
            _Rank(memory, self.plan, tuple(memory.stage(x) for x in rank_shards), world_size)
            for rank_shards in zip(*shards, strict=True)
        ]
        self.ring = LocalCommunicator.ring(world_size, device=memory.ring_device)
        self._args = [rank.args for rank in self._ranks]

    def run(self, timeline: list[RingTimeline] | None = None) -> None:
        """Enqueue one run of all ranks."""
        self.ring.run_all(self.stream, self.plan, self._args, timeline=timeline)

    def outputs(self) -> tuple[Any, Any]:
        """y and lse of the last run, gathered."""
        y, lse = (
            unshard([self._memory.fetch(x) for x in shards], sequence_layout=self._layout)
            for shards in zip(*((rank.y, rank.lse) for rank in self._ranks), strict=True)
        )
        return y, lse


class _Rank:
    """One virtual rank's arrays, and the arguments that view them."""

    def __init__(self, memory: Any, plan: Any, qkv: tuple[Any, ...], world_size: int) -> None:
        from baracuda_kernels import RingAttentionArgs

        # Held here because arguments over raw addresses keep nothing alive.
        self._q, self._k, self._v = qkv
        desc = plan.descriptor
        rows = (desc.batch_size, desc.num_heads, desc.query_len)
        dtype = desc.element.dtype_name
        self.y = memory.empty((*rows, desc.head_dim), dtype)
        self.lse = memory.empty(rows, accumulator_of(desc.element).dtype_name)
        scratch = {}
        if world_size > 1:
            self._scratch = {
                "kv_scratch_a": memory.empty((plan.kv_scratch_elements,), dtype),
                "kv_scratch_b": memory.empty((plan.kv_scratch_elements,), dtype),
                "accumulator_scratch": memory.empty((plan.accumulator_scratch_bytes,), "uint8"),
            }
            scratch = {name: memory.operand(array) for name, array in self._scratch.items()}
        self.args = RingAttentionArgs(
            q=memory.operand(self._q),
            k=memory.operand(self._k),
            v=memory.operand(self._v),
            y=memory.operand(self.y),
            lse=memory.operand(self.lse),
            **scratch,
        )


def _run_watched(
    prepared: PreparedRing, progress: Callable[[float, int], None] | None, timeout: float
) -> None:
    # The ring runs in a thread of its own so that this one can report how far it has come, and
    # stop it.
    ranks = prepared.ring.ranks
    total = len(ranks) ** 2
    report = progress or (lambda done, total: None)
    report(0, total)
    late = False
    end = time.monotonic() + timeout
    within, furthest = HostProgress(), 0.0

    def run_and_tell() -> None:
        with within:
            prepared.run()

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_and_tell)
        try:
            while wait([run], timeout=min(_POLL, max(end - time.monotonic(), 0.0))).not_done:
                done = sum(rank.steps_enqueued for rank in ranks) + within.fraction
                furthest = max(furthest, min(done, total))
                report(furthest, total)
                if time.monotonic() >= end:
                    late = True
                    prepared.ring.abort()
                    break
            run.result()
        except CommunicatorError as error:
            if not late:
                raise
            raise NcclTimeoutError(
                f"timeout: the run was stopped after {timeout:g} s", call="run_local_ring"
            ) from error
        except BaseException:
            # Of the caller's progress, or Ctrl-C: the pool would wait for the whole run.
            prepared.ring.abort()
            raise
    report(total, total)


def _check(q: Any, k: Any, v: Any, world_size: int) -> None:
    library = library_of(q)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if len(x.shape) != 4:
            raise InvalidProblemError(
                f"{name} has shape {tuple(x.shape)}; it must have four dimensions, [B, H, S, D]"
            )
        if library_of(x) != library or x.dtype != q.dtype:
            raise InvalidProblemError(
                f"{name} is {type(x).__name__} of {x.dtype} and q {type(q).__name__} of {q.dtype}; "
                "they must be alike"
            )
        if library == "torch" and _records_gradient(x):
            raise UnsupportedError(
                f"{name}: got a tensor that requires grad; there is no gradient here, run it under "
                "torch.no_grad() or pass detached tensors"
            )
    if tuple(k.shape) != tuple(v.shape):
        raise InvalidProblemError(
            f"k has shape {tuple(k.shape)} and v {tuple(v.shape)}; they must be alike"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise InvalidProblemError(
            f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}; batch and head_dim must be equal"
        )
    for name, x in (("the sequence of q", q), ("the sequence of k and v", k)):
        rows_per_rank(int(x.shape[2]), world_size, name)


def _records_gradient(x: Any) -> bool:
    import torch  # the tensor's own, loaded long since

    return bool(x.requires_grad and torch.is_grad_enabled())
