"""Training across the GPUs of one process by JAX: forward and backward of one attention layer.

    python -m benchmarks.training_jax --out benchmarks/results

Times `interop.jax.ring_attention` with its gradients inside `shard_map`, where XLA moves K, V, dK and
dV, beside the same work on one device (over the ranks: the ideal), by the same kernels and by XLA's
cuDNN attention, in interleaved rounds by the host's clock; holds the gradients to those of one device.
Writes DIR/training-jax-<ranks>x-<card>.json. Exit code 1 if a gradient is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from baracuda_kernels.interop.jax import ring_attention, sequence_order
from benchmarks.gradient_error import relative
from benchmarks.rounds import in_rounds, summary
from benchmarks.rows import Report, RingShape, Row, row

_ROWS = jax.sharding.PartitionSpec(None, None, "ring")
_WINDOW_MS = 60.0
# Relative difference of gradients from those of one device: both round to bf16.
_TOLERANCE = 6e-3


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if a gradient is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_jax")
    parser.add_argument("--chunk", type=int, nargs="+", default=[8192, 16384], help="rows a GPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    report = Report(options.out, "training-jax-")
    wrong = False
    for chunk, causal in product(options.chunk, (True, False)):
        found, off = measured(chunk, causal, options.rounds)
        report.add([found], ranks=jax.device_count())
        if not off <= _TOLERANCE:
            print(f"WRONG: gradients differ by {off:.1e}", file=sys.stderr, flush=True)
            wrong = True
    return 1 if wrong else 0


def measured(chunk: int, causal: bool, rounds: int) -> tuple[Row, float]:
    """A row `training` of all devices, and how far its gradients are from one device's."""
    ranks, layout = jax.device_count(), "zigzag" if causal else "contiguous"
    shape = RingShape(ranks, chunk, 32, 8, 128, layout, causal)
    whole = _operands(shape)
    ring, inputs = _step(whole, ranks, layout, causal)
    one, its_inputs = _step(whole, 1, layout, causal)
    order = sequence_order(ranks * chunk, ranks, layout)
    pairs = zip(ring(*inputs), one(*its_inputs), strict=True)  # dq, dk and dv
    off = max(relative(ours, np.asarray(exact)[:, :, order]) for ours, exact in pairs)
    calls = {"ours": lambda: ring(*inputs), "ideal": lambda: one(*its_inputs)}
    try:
        cudnn, turned = _cudnn_step(whole, causal)
        jax.block_until_ready(cudnn(*turned))
        calls["cudnn_ideal"] = lambda: cudnn(*turned)
    except Exception as error:  # noqa: BLE001 - this JAX, or its cuDNN, has no such attention
        print(f"cudnn absent: {error}"[:300], file=sys.stderr)
    figures = summary(in_rounds(
        calls, lambda name, count: _window(calls[name], count),
        rounds=rounds, milliseconds=_WINDOW_MS, least=3, most=sys.maxsize,
    ))  # fmt: skip
    peers = {name: ms / ranks for name, ms in figures["peers"].items()}
    params = shape.params(framework="jax", exchange="xla", rounds=rounds, what="step")
    return row("training", params, figures["ours"], peers), off


def _operands(of: RingShape) -> list[jax.Array]:
    """q, k, v, dy of the whole sequence, on the first device."""
    heads = (of.heads, of.kv_heads, of.kv_heads, of.heads)
    keys = jax.random.split(jax.random.key(20), len(heads))
    shapes = [(1, h, of.ranks * of.chunk, of.head_dim) for h in heads]
    return [jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=True)]


def _step(whole: list[jax.Array], ranks: int, layout: str, causal: bool) -> tuple[Any, list[Any]]:
    """dq, dk and dv of a ring of the first devices, and its operands in the layout's order."""
    mesh = jax.make_mesh((ranks,), ("ring",), devices=jax.devices()[:ranks])
    attend = jax.shard_map(
        lambda q, k, v: ring_attention(q, k, v, "ring", is_causal=causal, sequence_layout=layout),
        mesh=mesh, in_specs=_ROWS, out_specs=_ROWS,
    )  # fmt: skip
    order = sequence_order(whole[0].shape[2], ranks, layout)
    sharding = jax.NamedSharding(mesh, _ROWS)
    return _gradients(attend), [jax.device_put(np.asarray(x)[:, :, order], sharding) for x in whole]


def _cudnn_step(whole: list[jax.Array], causal: bool) -> tuple[Any, list[jax.Array]]:
    def attend(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")

    return _gradients(attend), [jnp.array(x.swapaxes(1, 2)) for x in whole]


def _gradients(attend: Any) -> Any:
    return jax.jit(lambda q, k, v, dy: jax.vjp(attend, q, k, v)[1](dy))


def _window(call: Any, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(result)
    return 1e3 * (time.perf_counter() - begin) / repeats


if __name__ == "__main__":
    sys.exit(main())
