"""A reduced grid of every GPU kernel, to be run under compute-sanitizer.

Small problems that reach every edge: lengths around the tiles, heads shared, masks, state loaded
and stored (rings of three), and gradients. `gpu/test_compute_sanitizer.py` runs it.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch

from baracuda_kernels.registry import Architecture
from baracuda_kernels.testing import assert_close, attention, attention_backward, torch_qkv

from . import cuda_gradients
from .gradients import draw
from .rings import case, local_ring

KERNELS = [
    *[("sm90a", t, d) for t in ("f16", "bf16") for d in (64, 128, 256)],
    *[("sm80", t, d) for t in ("f16", "bf16") for d in (64, 96, 128, 192, 256)],
    *[("simt", t, d) for t in ("f16", "bf16", "f32", "f64") for d in (24, 64, 128, 256)],
]
BACKWARD = [
    *[(f, t, d) for f in ("sm90a", "sm90a-deterministic") for t in ("f16", "bf16") for d in (64, 128)],
    *[(f, t, 64) for f in ("sm80", "sm80-deterministic") for t in ("f16", "bf16")],
    *[("simt", t, d) for t in ("f16", "bf16", "f32", "f64") for d in (24, 128, 256)],
]
# Warps of these kernels hand tiles over by arriving at a barrier at which others wait. racecheck
# does not see that order (the kernel log has its reports). `--no-handed-over` leaves these kernels
# out.
HANDED_OVER = [
    *[(f, t, 256) for f in ("sm90a", "sm90a-deterministic") for t in ("f16", "bf16")],
    *[(f, t, d) for f in ("sm80", "sm80-deterministic") for t in ("f16", "bf16")
      for d in (96, 128, 192, 256)],
]
# (ranks, rows, keys)
SHAPES = [(1, 65, 130), (1, 1, 63), (3, 40, 72)]
# Of sm90a, long enough for clusters: (head_dim, rows, keys, causal)
IN_CLUSTERS = [(128, 4096 + 65, 4096, False), (128, 4096, 8192, True), (256, 2048, 2048, False)]


def main() -> int:
    """Run the grid, and compare every answer with float64.

    With ``--one-each`` every kernel gets one of its problems, in turn: racecheck is slow.
    """
    each = list(itertools.product(SHAPES, (False, True)))
    forward = list(itertools.product(available(KERNELS), each))
    if "--one-each" in sys.argv[1:]:
        forward = list(zip(available(KERNELS), itertools.cycle(each), strict=False))
    for (family, dtype, head_dim), ((ranks, rows, keys), is_causal) in forward:
        shape = {"heads": 2, "kv_heads": 1, "query_len": rows * ranks, "key_len": keys * ranks,
                 "head_dim": head_dim}  # fmt: skip
        with case(family=family, dtype=dtype, ranks=ranks, causal=is_causal, **shape):
            _run(family, dtype, ranks, is_causal, shape)
    long = IN_CLUSTERS if Architecture.here().compute_capability == 90 else []
    for head_dim, rows, keys, is_causal in long:
        shape = {"heads": 1, "query_len": rows, "key_len": keys, "head_dim": head_dim}
        with case(in_clusters=True, causal=is_causal, **shape):
            _run("sm90a", "bf16", 1, is_causal, shape)
    gradients = [*BACKWARD, *(() if "--no-handed-over" in sys.argv[1:] else HANDED_OVER)]
    shapes = zip(available(gradients), itertools.cycle(SHAPES), strict=False)
    backward = list(itertools.product(shapes, (False, True)))
    for ((family, dtype, head_dim), (_, rows, keys)), is_causal in backward:
        # Heads that share keys, and heads that do not: sm90a has a kernel for each case.
        shape = {"heads": 2, "kv_heads": 1 + is_causal, "query_len": rows, "key_len": keys,
                 "head_dim": head_dim}  # fmt: skip
        with case(backward=family, dtype=dtype, causal=is_causal, **shape):
            _run_backward(family, dtype, is_causal, shape)
    print(f"{len(forward) + len(long) + len(backward)} problems agree with float64")
    return 0


def available(kernels: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Those that this card can run."""
    hopper = Architecture.here().compute_capability == 90
    return [kernel for kernel in kernels if hopper or not kernel[0].startswith("sm90a")]


def _run(family: str, dtype: str, ranks: int, is_causal: bool, shape: dict[str, Any]) -> None:
    # Drawn and checked on the host: the sanitizer has enough to do with our kernels.
    qkv = torch_qkv("normal", dtype, 0, device="cpu", **shape)
    exact = attention(*(x.double() for x in qkv), is_causal=is_causal)
    q, k, v = (x.cuda() for x in qkv)
    y, lse = local_ring(torch, family, dtype, q, k, v, ranks, is_causal=is_causal, layout="zigzag")
    assert_close(family, dtype, y, exact[0], lse, exact[1])


def _run_backward(family: str, dtype: str, is_causal: bool, shape: dict[str, Any]) -> None:
    x = draw(dtype, 0, dlse=True, **shape)
    exact = attention_backward(*x[:4], dlse=x.dlse, is_causal=is_causal)
    cuda_gradients.check(
        torch, family, dtype, cuda_gradients.on_gpu(torch, x), exact=exact, is_causal=is_causal,
        peaked=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
