"""`gradient_error` rows: rms error of a ring's dq, dk and dv against float64, beside one rank's.

Every rank has 2048 rows, so more ranks share a longer sequence; the peers are one rank over the same
sequence, forward and backward, and mere rounding. Rings are local ones on one GPU, and processes that
exchange by NCCL or by copy engines; `benchmarks.scaling` has those with a GPU each.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import baracuda_kernels as bk
from baracuda_kernels.testing import attention_backward
from benchmarks.rows import Row, row
from tests.helpers.gradients import NAMES, Problem
from tests.helpers.rank_pool import RankPool

ROWS = 2048
RANKS = (1, 2, 4, 8)
LAYOUTS = ("contiguous", "zigzag", "striped")
# A ring's error over one rank's; the sums that travel are float32, so that P adds next to nothing.
MARGIN = 1.02
_DTYPE = "bf16"
_SHAPE = {"heads": 32, "kv_heads": 8, "head_dim": 128}
_SEED = 20
# Of processes on one GPU; NCCL is slow there (sockets), and peers are as well seen at two.
_EXCHANGES = {2: ("nccl", "peer"), 4: ("nccl",), 8: ("nccl",)}

# dq, dk and dv of a problem over the whole sequence, by its layout and whether it is causal.
Ring = Callable[[Problem, str, bool], Sequence[Any]]


def rows() -> list[Row]:
    """All rows of one GPU: local rings of every size, and processes that share the card."""
    with contextlib.ExitStack() as started, ThreadPoolExecutor(len(_EXCHANGES)) as starting:

        def start(ranks: int) -> RankPool:
            return started.enter_context(contextlib.closing(RankPool(ranks, device_each=False)))

        pools = starting.map(start, _EXCHANGES)  # while the local rings run
        found = [one for ranks in RANKS for one in _rows(ranks, {"local": _local(ranks)})]
        for (ranks, exchanges), pool in zip(_EXCHANGES.items(), pools, strict=True):
            found += _rows(ranks, _processes(pool, exchanges))
    return found


def rows_of_processes(ranks: int, *, device_each: bool) -> list[Row]:
    """Rows of a ring of processes by NCCL and by copy engines, on one GPU or with one each."""
    with contextlib.closing(RankPool(ranks, device_each=device_each)) as pool:
        more = {"devices": ranks} if device_each else {}
        return _rows(ranks, _processes(pool, ("nccl", "peer")), **more)


def rows_of(
    x: Problem, ranks: int, rings: dict[str, Ring], alone: Ring, **params: Any
) -> list[Row]:
    """Rows of one problem over the whole sequence, NumPy arrays or tensors on a GPU.

    `rings` are by exchange, and those of one rank give what `alone` does: one rank over the same
    sequence. `params` are of every row besides.
    """
    found = []
    for causal in (False, True):
        exact = attention_backward(*x[:4], is_causal=causal)
        one_rank = _errors(alone(x, "contiguous", causal), exact)
        rounding = _errors([_rounded(e, x.q) for e in exact], exact)
        for exchange, ring in rings.items():
            for layout in LAYOUTS if ranks > 1 else LAYOUTS[:1]:
                ours = one_rank if ranks == 1 else _errors(ring(x, layout, causal), exact)
                of_ring = {"ranks": ranks, "layout": layout, "causal": causal, "exchange": exchange}
                for i, what in enumerate(NAMES):
                    peers = {"one_rank": one_rank[i], "rounding": rounding[i]}
                    of = {"what": what, **params, **of_ring}
                    found.append(row("gradient_error", of, ours[i], peers))
    return found


def worse(rows: Iterable[Row]) -> list[Row]:
    """Those whose error is more than 2 % above one rank's."""
    return [one for one in rows if not one["ours"] <= MARGIN * one["peers"]["one_rank"]]


def _rows(ranks: int, rings: dict[str, Ring], **params: Any) -> list[Row]:
    import torch

    from tests.helpers.cuda_ring_gradients import gradient_problem

    x = Problem(*gradient_problem(torch, _task(ranks)))
    shape = {"family": _family(), "dtype": _DTYPE, "chunk": ROWS, **_SHAPE}
    found = rows_of(x, ranks, rings, _local(1), **shape, **params)
    torch.cuda.empty_cache()  # for the processes that share the card
    return found


def _family() -> str:
    from benchmarks.peers import available

    return available([("sm90a",), ("sm80",)])[0][0]


def _task(ranks: int) -> dict[str, Any]:
    return {"dtype": _DTYPE, "seed": _SEED, "shape": {**_SHAPE, "query_len": ranks * ROWS}}


def _local(ranks: int) -> Ring:
    return lambda x, layout, causal: bk.run_local_ring(
        x.q, x.k, x.v, ranks, dy=x.dy, is_causal=causal, sequence_layout=layout, device="cuda"
    )[2:]


def _processes(pool: RankPool, exchanges: Iterable[str]) -> dict[str, Ring]:
    import torch

    from tests.helpers.cuda_ring_gradients import pool_gradients

    joined: list[str] = []

    def ring(exchange: str, x: Problem, layout: str, causal: bool) -> Sequence[Any]:
        if joined != [exchange]:
            answers = pool.join(exchange=exchange)
            assert all(set(a["exchange"]) == {exchange} for a in answers), answers
            joined[:] = [exchange]
        task = {"layout": layout, "is_causal": causal, "family": _family(),
                "register": exchange == "peer", **_task(pool.world_size)}  # fmt: skip
        return pool_gradients(torch, pool, task, x)

    return {exchange: functools.partial(ring, exchange) for exchange in exchanges}


def _errors(found: Sequence[Any], exact: Sequence[Any]) -> list[float]:
    return [rms(f, e) for f, e in zip(found, exact, strict=True)]


def rms(found: Any, exact: Any) -> float:
    """Of the difference, in float64."""
    return _size(_wide(found) - _wide(exact))


def relative(found: Any, exact: Any) -> float:
    """The difference over what is exact; infinite where either has a NaN."""
    off = rms(found, exact) / _size(_wide(exact))
    return math.inf if math.isnan(off) else off


def _size(x: Any) -> float:
    return float((x * x).mean() ** 0.5)


def _wide(x: Any) -> Any:
    return x.double() if hasattr(x, "double") else np.asarray(x, np.float64)


def _rounded(exact: Any, like: Any) -> Any:
    return exact.astype(like.dtype) if isinstance(exact, np.ndarray) else exact.to(like.dtype)
