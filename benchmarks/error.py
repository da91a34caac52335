"""`error` rows: rms error against float64, beside cuDNN's and mere rounding's.

Of y for rings of 1, 8 and 32 ranks, and of dq, dk and dv for one call.
"""

from __future__ import annotations

from typing import Any

import torch
from tests.helpers.cuda_gradients import gradients
from tests.helpers.gradients import NAMES, Problem
from tests.helpers.rings import local_ring

from baracuda_kernels import UnsupportedError
from baracuda_kernels.testing import TORCH_DTYPES, attention, attention_backward, torch_qkv
from benchmarks.peers import available, gradient_call, peers_for

_SHAPE = {"heads": 8, "query_len": 4096, "head_dim": 128}


def rows() -> list[dict[str, Any]]:
    """All `error` rows: unit-normal inputs, inputs with outliers, and for gradients peaked rows."""
    of_y = [
        row
        for dtype in ("bf16", "f16")
        for distribution in ("normal", "outliers")
        for row in _rows(dtype, distribution)
    ]
    return of_y + [
        row
        for dtype in ("bf16", "f16")
        for distribution in ("normal", "outliers", "large_logits")
        for row in _gradient_rows(dtype, distribution)
    ]


def _rows(dtype: str, distribution: str) -> list[dict[str, Any]]:
    q, k, v = torch_qkv(distribution, dtype, 0, **_SHAPE)
    exact, _ = attention(q, k, v)
    peers = {"rounding": _rms(exact.to(getattr(torch, TORCH_DTYPES[dtype])), exact)}
    cudnn = peers_for(q, k, v, False).get("cudnn")
    if cudnn is not None:
        peers["cudnn"] = _rms(cudnn(q, k, v), exact)
    rows = []
    for (family,) in available([("sm90a",), ("sm80",), ("simt",)]):
        for ranks in (1, 8, 32):
            y, _ = local_ring(torch, family, dtype, q, k, v, ranks)
            params = {
                "what": "y",
                "family": family,
                "dtype": dtype,
                "ranks": ranks,
                "distribution": distribution,
            }
            row = {"name": "error", "params": params, "unit": "rms", "ours": _rms(y, exact)}
            rows.append(row | {"peers": dict(peers)})
    return rows


def _gradient_rows(dtype: str, distribution: str) -> list[dict[str, Any]]:
    q, k, v = torch_qkv(distribution, dtype, 0, **_SHAPE)
    dy = torch_qkv("normal", dtype, 1, **_SHAPE)[0]
    exact = attention_backward(q, k, v, dy)
    rounded = [x.to(q.dtype) for x in exact]
    others = {"rounding": [_rms(*pair) for pair in zip(rounded, exact, strict=True)]}
    cudnn = peers_for(q, k, v, False).get("cudnn")
    if cudnn is not None:
        theirs = gradient_call(cudnn, q, k, v, dy)()
        others["cudnn"] = [_rms(*pair) for pair in zip(theirs, exact, strict=True)]
    rows = []
    for (family,) in available([("sm90a",), ("sm80",), ("simt",)]):
        try:
            ours = gradients(torch, family, dtype, Problem(q, k, v, dy))
        except UnsupportedError:  # this family has no gradients of such operands
            continue
        for number, what in enumerate(NAMES):
            params = {"what": what, "family": family, "dtype": dtype, "ranks": 1,
                      "distribution": distribution}  # fmt: skip
            peers = {name: values[number] for name, values in others.items()}
            rms = _rms(ours[number], exact[number])
            rows.append({"name": "error", "params": params, "unit": "rms", "ours": rms,
                         "peers": peers})  # fmt: skip
    return rows


def _rms(y: Any, exact: Any) -> float:
    return float((y.double() - exact).square().mean().sqrt())
