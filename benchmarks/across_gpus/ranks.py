"""What the ranks of a process group do together."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from baracuda_kernels.interop.torch import clear_cache
from benchmarks.rounds import in_rounds
from benchmarks.timing import sample

TIMEOUT = datetime.timedelta(seconds=120)
_SAMPLE_MS = 60.0  # and as long untimed


class Contender(NamedTuple):
    """A call, and the global positions of the rows that it answers for; good inside `around()`
    alone, which is not timed. `key_rows`: those of dk and dv, if they are others."""

    call: Callable[[], Any]
    rows: torch.Tensor = torch.arange(0)
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    key_rows: torch.Tensor | None = None


@contextlib.contextmanager
def group() -> Iterator[tuple[int, int]]:
    """(rank, world size) of the default process group, each rank on a GPU."""
    device = torch.device("cuda", int(os.environ["RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device, timeout=TIMEOUT)
    yield dist.get_rank(), dist.get_world_size()
    clear_cache()
    dist.destroy_process_group()


def interleaved(contenders: Mapping[str, Contender], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per call, of the slowest rank, one sample of each call per round.

    As many calls as are timed come before them, so that the cards' clocks are those of this call.
    Every rank gives the same names in the same order: the calls may be collective.
    """

    def measure(name: str, count: int) -> float:
        with contenders[name].around():
            torch.cuda.synchronize()
            dist.barrier()
            for _ in range(count):
                contenders[name].call()
            return slowest(sample(contenders[name].call, count))

    return in_rounds(contenders, measure, rounds=rounds, milliseconds=_SAMPLE_MS, least=1, most=100)


def parser(module: str, chunks: list[int]) -> argparse.ArgumentParser:
    """Of what every benchmark across GPUs is told."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}")
    made.add_argument("--chunk", type=int, nargs="+", default=chunks, help="rows a GPU")
    made.add_argument("--heads", type=int, nargs="+", default=[32])
    made.add_argument("--kv-heads", type=int, default=8)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("-o", "--out", type=Path, metavar="DIR")
    return made


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
