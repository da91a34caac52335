"""`error` rows: rms error against float64, beside cuDNN's and mere rounding's.

Of y for rings of 1, 8 and 32 ranks, and of dq, dk and dv for one call.
"""

from __future__ import annotations

from typing import Any

import torch

from baracuda_kernels import UnsupportedError
from baracuda_kernels.testing import attention, attention_backward, torch_qkv
from benchmarks.gradient_error import rms
from benchmarks.peers import available, gradient_call, peers_for
from benchmarks.rows import Row, row
from tests.helpers.cuda_gradients import gradients
from tests.helpers.gradients import NAMES, Problem
from tests.helpers.rings import local_ring

_SHAPE: dict[str, Any] = {"heads": 8, "query_len": 4096, "head_dim": 128}


def rows() -> list[Row]:
    """All `error` rows: unit-normal inputs, inputs with outliers, and for gradients peaked rows."""
    return [
        one
        for backward, distributions in (
            (False, ("normal", "outliers")), (True, ("normal", "outliers", "large_logits")),
        )
        for dtype in ("bf16", "f16")
        for distribution in distributions
        for one in _rows(dtype, distribution, backward)
    ]  # fmt: skip


def _rows(dtype: str, distribution: str, backward: bool) -> list[Row]:
    q, k, v = torch_qkv(distribution, dtype, 0, **_SHAPE)
    dy = torch_qkv("normal", dtype, 1, **_SHAPE)[0]
    exact = attention_backward(q, k, v, dy) if backward else attention(q, k, v)[:1]
    others: dict[str, Any] = {"rounding": [x.to(q.dtype) for x in exact]}
    cudnn = peers_for(q, k, v, False).get("cudnn")
    if cudnn is not None:
        others["cudnn"] = gradient_call(cudnn, q, k, v, dy)() if backward else [cudnn(q, k, v)]
    peers = {n: [rms(*pair) for pair in zip(x, exact, strict=True)] for n, x in others.items()}
    found = []
    for (family,) in available([("sm90a",), ("sm80",), ("simt",)]):
        for ranks in (1,) if backward else (1, 8, 32):
            try:
                ours = (
                    gradients(torch, family, dtype, Problem(q, k, v, dy)) if backward
                    else local_ring(torch, family, dtype, q, k, v, ranks)
                )  # fmt: skip
            except UnsupportedError:  # this family has no gradients of such operands
                continue
            for i, what in enumerate(NAMES if backward else ("y",)):
                params = {"what": what, "family": family, "dtype": dtype, "ranks": ranks,
                          "distribution": distribution}  # fmt: skip
                beside = {name: values[i] for name, values in peers.items()}
                found.append(row("error", params, rms(ours[i], exact[i]), beside))
    return found
