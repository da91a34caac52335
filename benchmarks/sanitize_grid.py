"""A reduced grid of every GPU kernel, to be run under compute-sanitizer.

Small problems that reach every edge: lengths around the tiles, heads shared, masks, state loaded
and stored (rings of three). `python -m benchmarks.evidence --part sanitize` runs it.
"""

from __future__ import annotations

import sys

import torch
from helpers.inputs import torch_qkv
from helpers.oracle import attention
from helpers.rings import case, local_ring
from helpers.tolerances import assert_close

from benchmarks.peers import available

KERNELS = [
    *[("sm90a", t, d) for t in ("f16", "bf16") for d in (64, 128, 256)],
    *[("sm80", t, d) for t in ("f16", "bf16") for d in (64, 96, 128, 192, 256)],
    *[("simt", t, d) for t in ("f16", "bf16", "f32", "f64") for d in (24, 64, 128, 256)],
]
# (ranks, rows, keys)
SHAPES = [(1, 65, 130), (1, 1, 63), (3, 40, 72)]


def main() -> int:
    """Runs the grid and holds every answer to float64.

    With ``--one-each`` every kernel gets one of its problems, in turn: racecheck is slow.
    """
    kernels = available(KERNELS)
    problems = [
        (kernel, shape, is_causal)
        for kernel in kernels
        for shape in SHAPES
        for is_causal in (False, True)
    ]
    if "--one-each" in sys.argv[1:]:
        each = len(SHAPES) * 2
        problems = [problems[i * each + i % each] for i in range(len(kernels))]
    for (family, dtype, head_dim), (ranks, rows, keys), is_causal in problems:
        shape = {
            "heads": 2,
            "kv_heads": 1,
            "query_len": rows * ranks,
            "key_len": keys * ranks,
            "head_dim": head_dim,
        }
        with case(family=family, dtype=dtype, ranks=ranks, causal=is_causal, **shape):
            _run(family, dtype, ranks, is_causal, shape)
    print(f"{len(problems)} problems agree with float64")
    return 0


def _run(family: str, dtype: str, ranks: int, is_causal: bool, shape: dict) -> None:
    # Drawn and checked on the host: the sanitizer has enough to do with our kernels.
    q, k, v = torch_qkv("normal", dtype, 0, device="cpu", **shape)
    exact = attention(q.double(), k.double(), v.double(), is_causal=is_causal)
    y, lse = local_ring(
        torch,
        family,
        dtype,
        q.cuda(),
        k.cuda(),
        v.cuda(),
        ranks,
        is_causal=is_causal,
        layout="zigzag",
    )
    assert_close(family, dtype, y, exact[0], lse, exact[1])


if __name__ == "__main__":
    sys.exit(main())
