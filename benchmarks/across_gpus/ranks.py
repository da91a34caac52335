"""What the ranks of a process group do together: rounds, reports, and who may stand beside us."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels.interop.torch import clear_cache
from benchmarks import ROOT
from benchmarks.rounds import in_rounds
from benchmarks.rows import Row, line, write_of_ranks
from benchmarks.source import require_own_sources
from benchmarks.timing import sample

TIMEOUT = datetime.timedelta(seconds=120)
_SAMPLE_MS = 30.0

Around = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def group() -> Iterator[tuple[int, int]]:
    """(rank, world size) of the default process group, each rank on a GPU."""
    device = torch.device("cuda", int(os.environ["RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device, timeout=TIMEOUT)
    yield dist.get_rank(), dist.get_world_size()
    clear_cache()
    dist.destroy_process_group()


class Report:
    """Rank 0's rows: printed as they come, and `folder`/`prefix`<ranks>x-<card>.json written anew.

    Raises
    ------
    SourceMismatch
        If the installed build was made of other sources than lie here.
    """

    def __init__(self, folder: Path | None, prefix: str = "") -> None:
        self._digest, self._start = require_own_sources(ROOT), time.monotonic()
        self._folder, self._prefix = folder, prefix
        self._rows: list[Row] = []

    def add(self, rank: int, ranks: int, rows: list[Row]) -> None:
        if rank != 0:
            return
        self._rows += rows
        for row in rows:
            print(f"{time.monotonic() - self._start:6.1f} s  {line(row)}", flush=True)
        if self._folder is not None:
            write_of_ranks(self._folder, self._prefix, ranks, self._digest, self._rows)


def interleaved(
    calls: Mapping[str, Callable[[], Any]], around: Mapping[str, Around], *, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds per call, of the slowest rank, one sample of each call per round.

    Every rank gives the same names in the same order: the calls may be collective. A call named in
    `around` is made inside that context, which is not timed.
    """

    def measure(name: str, count: int) -> float:
        with around.get(name, contextlib.nullcontext)():
            torch.cuda.synchronize()
            dist.barrier()
            return slowest(sample(lambda _: calls[name](), count))

    return in_rounds(
        calls, measure, rounds=rounds, milliseconds=_SAMPLE_MS, least=1, most=100
    )


def slowest(value: float) -> float:
    """The largest of all ranks' values."""
    most = torch.tensor([value], device="cuda", dtype=torch.float64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most.item()


def fastest(value: float) -> float:
    """The smallest of all ranks' values."""
    return -slowest(-value)


def say(text: str) -> None:
    """Print it on one rank."""
    if dist.get_rank() == 0:
        print(text, flush=True)
