"""Ring attention of whole arrays over virtual ranks in this process, in one call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar, overload

from baracuda_kernels._arguments import number
from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels._core._info import HostProgress
from baracuda_kernels._prepared_ring import PreparedRing
from baracuda_kernels.errors import (
    CommunicatorError,
    InvalidProblemError,
    NcclTimeoutError,
    UnsupportedError,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    _Scalar = TypeVar("_Scalar", bound=np.generic)

__all__ = ["run_local_ring"]

_Array = TypeVar("_Array")

# Seconds between two reports of progress.
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
    dy: None = None,
    dlse: None = None,
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
    dy: None = None,
    dlse: None = None,
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
    dy: None = None,
    dlse: None = None,
) -> tuple[_Array, _Array]: ...
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
    dy: _Array,
    dlse: _Array | None = None,
) -> tuple[_Array, _Array, _Array, _Array, _Array]: ...
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
    dy: Any = None,
    dlse: Any = None,
) -> Any:
    """Exact attention of whole arrays, computed by a ring of virtual ranks in this process.

    Shards the sequence over `world_size` ranks of a `LocalCommunicator` ring, runs every rank's
    `RingAttentionPlan` (with `dy` also its `RingAttentionBackwardPlan`), and gathers the outputs.
    It allocates operands and scratch itself, so it is for trials, tests and checks. Engines that
    own their memory use the plans. The only mask is the causal one; there is no window and no
    dropout.

    Parameters
    ----------
    q : array
        ``[B, H, S, D]``; float16, bfloat16, float32 or float64. A NumPy array (bfloat16 by
        ml_dtypes; a memmap or nested lists too, which become float64), a PyTorch tensor or a CuPy
        array. Masked arrays, and tensors that require grad, are refused.
    k, v : array
        ``[B, Hkv, Sk, D]`` of the same kind and dtype, ``H % Hkv == 0``.
    world_size : int
        Number of virtual ranks, 1 to 65536. S and Sk must be multiples of it.
    is_causal : bool, default False
        Global row ``i`` sees the keys ``j <= i``.
    scale : float, optional
        Factor on ``q·k``; default ``1 / sqrt(D)``.
    sequence_layout : SequenceLayout or str, default "contiguous"
        How rows are dealt to ranks: contiguous, zigzag or striped.
    device : str or torch.device, default "host"
        The device of the ring: ``"host"`` (or ``"cpu"``), ``"cuda"`` or ``"cuda:N"``. NumPy arrays
        (through cuda.core, the extra ``[cu13]`` or ``[cu12]``) and CPU tensors are copied there and
        back. For arrays on a GPU it must be their own device.
    progress : callable, optional
        Called from this thread as ``progress(done, total)``, in steps of all ranks: every rank has
        `world_size` steps, and with `dy` twice as many. On the host `done` rises within a step too.
    timeout : float, optional
        Seconds that a run on the host may take. Then it is stopped, within half a second. A run on
        a GPU cannot be stopped and takes no timeout. By default there is no limit. The preparation
        (arguments, shards, memory), before the run, is not limited.
    dy : array, optional
        ``[B, H, S, D]``, the gradient of `y`, of the kind and dtype of `q`. With it the gradients
        of `q`, `k` and `v` are computed too.
    dlse : array, optional
        ``[B, H, S]``, the gradient of `lse`, of its dtype; by default zeros. Only with `dy`.

    Returns
    -------
    y : array
        ``[B, H, S, D]``, of the kind and dtype of `q` and on its device.
    lse : array
        ``[B, H, S]``, float64 for float64 operands, else float32; natural logarithm, -inf in rows
        that see no key.
    dq, dk, dv : array
        Only with `dy`: the gradients, each with the shape, kind and dtype of its operand.

    Raises
    ------
    InvalidProblemError
        Shapes, dtypes, devices or the layout do not fit. For an uneven S the message names the
        nearest lengths that fit.
    UnsupportedError
        No kernel serves the problem on that device, cuda.core is missing for NumPy arrays, a tensor
        requires grad or has a tangent, the call is within a torch.func transform, a trace or a
        TorchDispatchMode, or `timeout` is given on a GPU.
    NcclTimeoutError
        `timeout` passed.
    CudaError
        The device failed.
    KeyboardInterrupt
        Ctrl-C; on the host within half a second. Errors that `progress` raises are passed on too.
    """
    *outputs, _ = run_with_plan(
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
        dy=dy,
        dlse=dlse,
    )
    return tuple(outputs)


def run_with_plan(
    q: Any,
    k: Any,
    v: Any,
    world_size: int,
    *,
    progress: Callable[[float, int], None] | None,
    timeout: float | None,
    **options: Any,
) -> tuple[Any, ...]:
    """As `run_local_ring`, with the forward's plan as the last result. `options` go to
    `PreparedRing`."""
    if progress is not None and not callable(progress):
        raise InvalidProblemError(f"progress: got {progress!r}, must be a function")
    if timeout is not None:
        timeout = number("timeout", timeout)
        if not timeout > 0:
            raise InvalidProblemError(f"timeout: got {timeout:g}, must be more than 0 seconds")
    prepared = PreparedRing(q, k, v, world_size, **options)
    if timeout is not None and prepared.plan.device >= 0:
        raise UnsupportedError(
            f"timeout: got {timeout:g}, must be None on a GPU: enqueued work cannot be stopped "
            "there"
        )
    if progress is None and timeout is None:
        prepared.run()
    else:
        _run_watched(prepared, progress, math.inf if timeout is None else timeout)
    return *prepared.outputs(), prepared.plan


def _run_watched(
    prepared: PreparedRing, progress: Callable[[float, int], None] | None, timeout: float
) -> None:
    # The rings run in another thread, so that this one can report their progress and stop them.
    ranks = [rank for ring in prepared.rings for rank in ring]
    total = sum(len(ring) ** 2 for ring in prepared.rings)
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
                    _abort(prepared)
                    break
            run.result()
        except CommunicatorError as error:
            if not late:
                raise
            raise NcclTimeoutError(
                f"timeout: the run was stopped after {timeout:g} s", call="run_local_ring"
            ) from error
        except BaseException:
            # Raised by `progress`, or Ctrl-C. Without an abort the pool would wait for the whole
            # run.
            _abort(prepared)
            raise
    report(total, total)


def _abort(prepared: PreparedRing) -> None:
    for ring in prepared.rings:
        ring.abort()
