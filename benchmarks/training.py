"""Training across the GPUs of one host: forward and backward of one attention layer by PyTorch.

    torchrun --standalone --nproc-per-node=2 -m benchmarks.training --out benchmarks/results

One process per GPU. Times `interop.torch.ring_attention` with its gradients beside PyTorch's
`context_parallel` in the fastest of its forms, ring-flash-attention where it is installed, and the
same work on one GPU (over the ranks: the ideal), in interleaved rounds; holds every rank's
gradients to those of one GPU; and takes the peak of memory. Writes DIR/training-<ranks>x-<card>.json,
anew after each problem. Exit code 1 if a gradient is wrong.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

from torch.distributed.device_mesh import init_device_mesh

from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.ranks import group
from benchmarks.across_gpus.steps import TrainingMeasures
from benchmarks.rows import Report


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    report = Report(options.out, "training-")
    with group() as (rank, ranks):
        measures = TrainingMeasures(init_device_mesh("cuda", (ranks,)))
        for chunk, mask in product(options.chunk, options.mask):
            causal = mask == "causal"
            layout = "zigzag" if causal else "contiguous"
            problem = Problem(ranks, chunk, options.heads, options.kv_heads, 128, layout, causal)
            report.add(measures.rows(problem, options.rounds), ranks=ranks, rank=rank)
    return 1 if measures.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument(
        "--chunk", type=int, nargs="+", default=[4096, 8192, 16384, 32768], help="rows a GPU"
    )
    parser.add_argument(
        "--mask", nargs="+", choices=("causal", "full"), default=["causal", "full"],
        help="causal rows are dealt zigzag",
    )  # fmt: skip
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--out", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
