"""Ring attention across the GPUs of one host: answers, speed beside others, memory, faults.

    torchrun --standalone --nproc-per-node=8 -m benchmarks.scaling --out benchmarks/results

One process per GPU; `mpirun` will do where RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.
Checks sampled rows against float64, then times the ring (eager, and as a CUDA graph; by copy engine
where that works, and by NCCL) beside its own steps without an exchange, the same work on one GPU, an
all-gather of K and V with one kernel, an all-to-all of heads with our kernel (Ulysses), and PyTorch's
`context_parallel` in the fastest of its forms; last, rank 0 starts rings of its own: one whose gradients are held to float64, and some of which a rank
is killed or stopped. Writes DIR/<ranks>x-<card>.json, anew after each problem. Exit code 1 if an answer
is wrong or a rank ends without a typed error.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys

import torch
from torch.distributed.device_mesh import init_device_mesh

import baracuda_kernels as bk
from benchmarks import faults, gradient_error
from benchmarks.across_gpus.contenders import registered
from benchmarks.across_gpus.hops import Way
from benchmarks.across_gpus.measures import Measures
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.ranks import TIMEOUT, group, parser
from benchmarks.rows import Report

LAYOUTS = ("zigzag", "contiguous", "striped")


def main(arguments: list[str] | None = None) -> int:
    """Exit code of rank 0: 0 if all answers are within tolerance and all faults were met."""
    options = _parser().parse_args(arguments)
    report = Report(options.out)
    with group() as (rank, ranks):
        failed = _measure(options, rank, ranks, report)
    if rank != 0:
        return 0  # a launcher that sees a rank fail would end rank 0 among its faults
    torch.cuda.empty_cache()
    each = torch.cuda.device_count() >= ranks
    if options.gradients:
        rows = gradient_error.rows_of_processes(ranks, device_each=each)
        report.add(rows, ranks=ranks)
        for row in gradient_error.worse(rows):
            print(f"FAILED: more than one rank's error: {row}", file=sys.stderr, flush=True)
            failed = True
    if options.faults:
        rows = faults.rows(("SIGKILL", "SIGSTOP"), ranks, rings=3, device_each=each)
        report.add(rows, ranks=ranks)
    return 1 if failed else 0


def _measure(options: argparse.Namespace, rank: int, ranks: int, report: Report) -> bool:
    """Whether an answer was wrong."""
    device = torch.cuda.current_device()
    asked = [("auto", options.max_ctas[-1]), *(("nccl", ctas) for ctas in options.max_ctas)]
    ways = []
    for exchange, ctas in asked:
        comm = bk.Communicator.from_torch(
            device=device, max_ctas=ctas, exchange=exchange, timeout=TIMEOUT.total_seconds()
        )
        ways.append(Way.of(comm, ctas))
    if ways[0].exchange == "nccl":  # nothing else works here
        ways.pop(0).comm.close()
    alone = bk.Communicator.new_single_gpu(device)
    measures = Measures(ways, alone, init_device_mesh("cuda", (ranks,)))
    shape = (options.kv_heads, options.head_dim)
    try:
        for chunk, heads, layout, causal in itertools.product(
            options.chunk, options.heads, options.layout, (True, False)
        ):
            problem = Problem(ranks, chunk, heads, *shape, layout, causal)
            report.add(measures.rows(problem, options.rounds), ranks=ranks, rank=rank)
    except BaseException:
        for way in ways:
            way.comm.abort()  # or this rank would wait for the others
        raise
    gc.collect()  # a communicator ends when no graph holds work of it
    registered.clear()
    for one in (alone, *(way.comm for way in ways)):
        one.close()
    return measures.failed


def _parser() -> argparse.ArgumentParser:
    made = parser("scaling", [8192, 32768])
    made.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    made.add_argument("--head-dim", type=int, default=128)
    made.add_argument(
        "--max-ctas", type=int, nargs="+", default=[4, 8], metavar="SMS",
        help="SMs for exchanges: of these the first that leaves next to none of it exposed",
    )  # fmt: skip
    made.add_argument("--no-gradients", dest="gradients", action="store_false")
    made.add_argument("--no-faults", dest="faults", action="store_false")
    return made


if __name__ == "__main__":
    sys.exit(main())
