"""`error` rows: rms error against float64, beside cuDNN's and mere rounding's.

Of y for rings of 1, 8 and 32 ranks, and of dq, dk and dv for one call.
"""

from __future__ import annotations

from typing import Any

import torch

from baracuda_kernels import UnsupportedError
from baracuda_kernels.testing import TORCH_DTYPES, attention, attention_backward, torch_qkv
from benchmarks.peers import available, gradient_call, peers_for
from benchmarks.rows import Row, row
from tests.helpers.cuda_gradients import gradients
from tests.helpers.gradients import NAMES, Problem
from tests.helpers.rings import local_ring

_SHAPE = {"heads": 8, "query_len": 4096, "head_dim": 128}


def rows() -> list[Row]:
    """All `error` rows: unit-normal inputs, inputs with outliers, and for gradients peaked rows."""
    found = []
    for measure, distributions in (
        (_rows, ("normal", "outliers")),
        (_gradient_rows, ("normal", "outliers", "large_logits")),
    ):
        for dtype in ("bf16", "f16"):
            for distribution in distributions:
                found += measure(dtype, distribution)
    return found


def _params(what: str, family: str, dtype: str, ranks: int, distribution: str) -> dict[str, Any]:
    return {"what": what, "family": family, "dtype": dtype, "ranks": ranks,
            "distribution": distribution}  # fmt: skip


def _rows(dtype: str, distribution: str) -> list[Row]:
    q, k, v = torch_qkv(distribution, dtype, 0, **_SHAPE)
    exact, _ = attention(q, k, v)
    peers = {"rounding": _rms(exact.to(getattr(torch, TORCH_DTYPES[dtype])), exact)}
    cudnn = peers_for(q, k, v, False).get("cudnn")
    if cudnn is not None:
        peers["cudnn"] = _rms(cudnn(q, k, v), exact)
    found = []
    for (family,) in available([("sm90a",), ("sm80",), ("simt",)]):
        for ranks in (1, 8, 32):
            y, _ = local_ring(torch, family, dtype, q, k, v, ranks)
            params = _params("y", family, dtype, ranks, distribution)
            found.append(row("error", params, _rms(y, exact), dict(peers)))
    return found


def _gradient_rows(dtype: str, distribution: str) -> list[Row]:
    q, k, v = torch_qkv(distribution, dtype, 0, **_SHAPE)
    dy = torch_qkv("normal", dtype, 1, **_SHAPE)[0]
    exact = attention_backward(q, k, v, dy)
    rounded = [x.to(q.dtype) for x in exact]
    others = {"rounding": [_rms(*pair) for pair in zip(rounded, exact, strict=True)]}
    cudnn = peers_for(q, k, v, False).get("cudnn")
    if cudnn is not None:
        theirs = gradient_call(cudnn, q, k, v, dy)()
        others["cudnn"] = [_rms(*pair) for pair in zip(theirs, exact, strict=True)]
    found = []
    for (family,) in available([("sm90a",), ("sm80",), ("simt",)]):
        try:
            ours = gradients(torch, family, dtype, Problem(q, k, v, dy))
        except UnsupportedError:  # this family has no gradients of such operands
            continue
        for number, what in enumerate(NAMES):
            peers = {name: values[number] for name, values in others.items()}
            params = _params(what, family, dtype, 1, distribution)
            found.append(row("error", params, _rms(ours[number], exact[number]), peers))
    return found


def _rms(y: Any, exact: Any) -> float:
    return float((y.double() - exact).square().mean().sqrt())
