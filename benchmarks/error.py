"""`error` rows: rms error against float64, beside cuDNN's and mere rounding's."""

from __future__ import annotations

from typing import Any

import torch
from helpers.inputs import TORCH_DTYPES, torch_qkv
from helpers.oracle import attention
from helpers.rings import local_ring

from benchmarks.peers import available, peers_for

_SHAPE = {"heads": 8, "query_len": 4096, "head_dim": 128}


def rows() -> list[dict[str, Any]]:
    """All `error` rows: P = 1, 8 and 32, unit-normal inputs and inputs with outliers."""
    return [
        row
        for dtype in ("bf16", "f16")
        for distribution in ("normal", "outliers")
        for row in _rows(dtype, distribution)
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
                "family": family,
                "dtype": dtype,
                "ranks": ranks,
                "distribution": distribution,
            }
            row = {"name": "error", "params": params, "unit": "rms", "ours": _rms(y, exact)}
            rows.append(row | {"peers": dict(peers)})
    return rows


def _rms(y: Any, exact: Any) -> float:
    return float((y.double() - exact).square().mean().sqrt())
