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
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from baracuda_kernels.interop.torch import clear_cache
from benchmarks import ROOT
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.steps import TrainingMeasures
from benchmarks.rows import Row, write_of_ranks
from benchmarks.source import require_own_sources


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    digest = require_own_sources(ROOT)
    device = torch.device("cuda", int(os.environ["RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    measures = TrainingMeasures(init_device_mesh("cuda", (ranks,)))
    rows: list[Row] = []
    for chunk in options.chunk:
        for mask in options.mask:
            layout = "zigzag" if mask == "causal" else "contiguous"
            causal = mask == "causal"
            problem = Problem(ranks, chunk, options.heads, options.kv_heads, 128, layout, causal)
            rows += measures.rows(problem, options.rounds)
            if rank == 0 and options.out is not None:
                write_of_ranks(options.out, "training-", ranks, digest, rows)
    clear_cache()
    dist.destroy_process_group()
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
