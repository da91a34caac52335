"""Ring attention across the GPUs of one host: answers, speed beside others, memory, faults.

    torchrun --standalone --nproc-per-node=8 -m benchmarks.scaling --out benchmarks/results

One process per GPU; `mpirun` will do where RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.
Checks sampled rows against float64, then times the ring (eager, and as a CUDA graph; by copy engine
where that works, and by NCCL) beside its own steps without an exchange, the same work on one GPU, an
all-gather of K and V with one kernel, and PyTorch's `context_parallel` in the fastest of its forms;
last, rank 0 starts rings of its own: one whose gradients are held to float64, and some of which a rank
is killed or stopped. Writes DIR/<ranks>x-<card>.json, anew after each problem. Exit code 1 if an answer
is wrong or a rank ends without a typed error.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import itertools
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import baracuda_kernels as bk
from baracuda_kernels.interop.torch import clear_cache
from benchmarks import ROOT, faults, gradient_error
from benchmarks.across_gpus.contenders import forget_buffers
from benchmarks.across_gpus.hops import Way
from benchmarks.across_gpus.measures import Measures
from benchmarks.across_gpus.problem import Problem
from benchmarks.rows import Row, write_of_ranks
from benchmarks.source import require_own_sources

LAYOUTS = ("zigzag", "contiguous", "striped")
FAULTS = ("SIGKILL", "SIGSTOP")
_FAULT_RINGS = 3
_TIMEOUT = datetime.timedelta(seconds=120)


def main(arguments: list[str] | None = None) -> int:
    """Exit code of rank 0: 0 if all answers are within tolerance and all faults were met."""
    options = _parser().parse_args(arguments)
    digest = require_own_sources(ROOT)
    start = time.monotonic()
    with _group() as (rank, ranks):
        report = _Report(options.out, rank, ranks, digest, start)
        failed = _measure(options, ranks, report)
    if rank != 0:
        return 0  # a launcher that sees a rank fail would end rank 0 among its faults
    if options.gradients:
        failed |= _gradients(ranks, report)
    if options.faults:
        failed |= _faults(ranks, report)
    return 1 if failed else 0


@contextlib.contextmanager
def _group() -> Iterator[tuple[int, int]]:
    """(rank, world size) of the default process group, each rank on a GPU."""
    device = torch.device("cuda", int(os.environ["RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device, timeout=_TIMEOUT)
    yield dist.get_rank(), dist.get_world_size()
    clear_cache()
    dist.destroy_process_group()


def _measure(options: argparse.Namespace, ranks: int, report: _Report) -> bool:
    """Whether an answer was wrong."""
    device = torch.cuda.current_device()
    asked = [("auto", options.max_ctas[-1]), *(("nccl", ctas) for ctas in options.max_ctas)]
    ways = []
    for exchange, ctas in asked:
        comm = bk.Communicator.from_torch(
            device=device, max_ctas=ctas, exchange=exchange, timeout=_TIMEOUT.total_seconds()
        )
        ways.append(Way.of(comm, ctas))
    if ways[0].exchange == "nccl":  # nothing else works here
        ways.pop(0).comm.close()
    alone = bk.Communicator.new_single_gpu(device)
    measures = Measures(ways, alone, init_device_mesh("cuda", (ranks,)))
    shape = (options.heads, options.kv_heads, options.head_dim)
    try:
        for chunk, layout, causal in itertools.product(
            options.chunk, options.layout, (True, False)
        ):
            problem = Problem(ranks, chunk, *shape, layout, causal)
            report.add(measures.rows(problem, options.rounds))
    except BaseException:
        for way in ways:
            way.comm.abort()  # or this rank would wait for the others
        raise
    gc.collect()  # a communicator ends when no graph holds work of it
    forget_buffers()
    for one in (alone, *(way.comm for way in ways)):
        one.close()
    return measures.failed


def _gradients(ranks: int, report: _Report) -> bool:
    """Whether the error of a ring's gradients grew with its ranks."""
    torch.cuda.empty_cache()
    each = torch.cuda.device_count() >= ranks
    rows = gradient_error.rows_of_processes(ranks, device_each=each)
    report.add(rows)
    wrong = gradient_error.worse(rows)
    for row in wrong:
        print(f"FAILED: more than one rank's error: {row}", file=sys.stderr, flush=True)
    return bool(wrong)


def _faults(ranks: int, report: _Report) -> bool:
    """Whether a rank ended without a typed error."""
    torch.cuda.empty_cache()
    each = torch.cuda.device_count() >= ranks
    failed = False
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        rows = {
            case: pool.submit(faults.of_case, case, ranks=ranks, rings=_FAULT_RINGS, device_each=each)
            for case in FAULTS
        }
        for case, row in rows.items():
            try:
                report.add([row.result()])
            except AssertionError as error:
                print(f"FAILED: {case}: {error}", file=sys.stderr, flush=True)
                failed = True
    return failed


class _Report:
    """Rank 0's rows: printed as they come, and written out again with each problem."""

    def __init__(
        self, folder: Path | None, rank: int, ranks: int, digest: str, start: float
    ) -> None:
        self._start, self._writes, self._folder = start, rank == 0, folder
        self._ranks, self._digest = ranks, digest
        self._rows: list[Row] = []

    def add(self, rows: list[Row]) -> None:
        if not self._writes:
            return
        self._rows += rows
        for row in rows:
            print(f"{time.monotonic() - self._start:6.1f} s  {_line(row)}", flush=True)
        if self._folder is not None:
            write_of_ranks(self._folder, "", self._ranks, self._digest, self._rows)


def _line(row: Row) -> str:
    p, peers = row["params"], row["peers"]
    text = f"{row['name']:15} P {p['ranks']} "
    if row["name"] == "faults":
        text += p["case"]
    else:
        mask = "causal" if p["causal"] else "full"
        text += f"chunk {p['chunk']:6} {p['layout']:10} {mask:6}"
    text += f" {row['ours']:.4g} {row['unit']}"
    text += "".join(f", {name} {value:.4g}" for name, value in peers.items())
    if "exchange" in p:
        text += f" by {p['exchange']}"
    if row["name"] == "gradient_error":
        text += f", {p['what']}"
    if row["name"] == "scaling":
        text += f" ({p['what']}: {100 * peers['ideal'] / row['ours']:.1f} % of ideal)"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--chunk", type=int, nargs="+", default=[8192, 32768], help="rows a GPU")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument(
        "--max-ctas", type=int, nargs="+", default=[4, 8], metavar="SMS",
        help="SMs for exchanges: of these the first that leaves next to none of it exposed",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-gradients", dest="gradients", action="store_false")
    parser.add_argument("--no-faults", dest="faults", action="store_false")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
