"""A problem, a machine and an evidence file for the tests of the performance model."""

from __future__ import annotations

import dataclasses
from typing import Any

from baracuda_kernels import predict


def problem(**changes: Any) -> predict.RingProblem:
    """A causal problem with eight ranks, with changes."""
    good = {"seq": 2**17, "ranks": 8, "heads": 32, "kv_heads": 8, "head_dim": 128, "causal": True}
    return predict.RingProblem(**{**good, **changes})


def machine(
    tflops: float = 400.0, link_gbps: float = 400.0, state: float = 0.0, **changes: Any
) -> predict.Machine:
    """A machine with constant rates, and no latency, SM margin or state unless given."""
    rates = dataclasses.replace(predict.ComputeRates.constant(tflops), state=((1.0, state),))
    plain = {"latency_us": 0.0, "sm_margin": 0}
    return predict.Machine(rates=rates, link_gbps=link_gbps, **{**plain, **changes})


def forward_row(length: int, tflops: float, causal: bool = False, **changes: Any) -> dict[str, Any]:
    """A row of the evidence file, of a call at that speed."""
    params = {"family": "sm80", "dtype": "bf16", "batch": 2, "heads": 4, "kv_heads": 4}
    params.update({"query_len": length, "key_len": length, "head_dim": 128, "causal": causal})
    params.update(changes)
    flops = 4 * 2 * 4 * length**2 * 128 / (2 if causal else 1)
    ms = flops / tflops / 1e9
    return {"name": "forward", "params": params, "unit": "ms", "ours": ms, "peers": {}}


def backward_row(length: int, tflops: float, causal: bool = False, **changes: Any) -> dict[str, Any]:
    """The same of a backward, whose flops are 2.5 times as many."""
    row = forward_row(length, tflops / 2.5, causal, **{"guarantee": "fast", **changes})
    return row | {"name": "backward"}


def tax_row(chunk: int, tflops: float, state_ps: float, **changes: Any) -> dict[str, Any]:
    """A row of the evidence file: eight steps at H 16, D 128, on 132 SMs, at that speed, and with
    that many picoseconds a byte of state."""
    params = {"family": "sm80", "dtype": "bf16", "head_dim": 128, "heads": 16}
    params.update({"chunk": chunk, "ranks": 8, "causal": False})
    params.update(changes)
    seconds = 4 * 16 * 8 * chunk**2 * 128 / (tflops * 1e12) * max(132 * 128 / (16 * chunk), 1)
    seconds += 14 * 16 * chunk * 130 * 4 * state_ps * 1e-12
    peers = {"one_call": 1.0}
    return {
        "name": "ring_tax",
        "params": params,
        "unit": "ms",
        "ours": seconds * 1e3,
        "peers": peers,
    }


EVIDENCE = {
    "card": "Some Card",
    "rows": [
        forward_row(1024, 100.0),
        forward_row(4096, 200.0),
        forward_row(4096, 300.0),
        forward_row(4096, 999.0, head_dim=64),
        forward_row(4096, 999.0, family="simt"),
        forward_row(1024, 80.0, causal=True),
        forward_row(4096, 200.0, causal=True),
        tax_row(1024, 100.0, 2.0),
        tax_row(4096, 260.0, 0.0),
    ],
}
