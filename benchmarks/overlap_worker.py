"""One rank of a NCCL ring that times itself: tests/multi_rank/worker.py and one task more.

Started by helpers.rank_pool, one process per rank.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

# For `benchmarks` and the tests' helpers: this file is run by its path.
_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]

import torch
from tests.helpers.rings import descriptor, preference, rank_arrays
from multi_rank.worker import Rank, main

import baracuda_kernels as bk
from baracuda_kernels.testing import torch_qkv
from benchmarks.timing import order


class TimedRank(Rank):
    """A worker of the tests that can time a ring, too."""

    def time_overlap(self, task: dict) -> dict:
        """Milliseconds of a ring, of its kernels alone, and of one that has next to no kernels."""
        comm, chunk = self.comms["own"], task["rows"]
        shape = {"heads": task["heads"], "query_len": chunk, "head_dim": task["head_dim"]}
        q, k, v = torch_qkv("normal", "bf16", self.rank, **shape)
        stream = bk.Stream(torch.cuda.current_stream())

        def ring(rows: int) -> tuple:
            some = q[:, :, :rows].contiguous()
            plan = bk.RingAttentionPlan.select(
                stream, descriptor(some, k, "bf16"), preference(task["family"], "bf16")
            )
            return plan, rank_arrays(torch, plan, some, k, v, comm.world_size)

        (plan, arrays), (plan_of_one, arrays_of_one) = ring(chunk), ring(1)

        def kernels() -> None:
            steps = comm.world_size
            for number in range(steps):
                plan.step(
                    stream, q=q, k=k, v=v, y=arrays.y, rank=self.rank, world_size=steps,
                    accumulator_scratch=arrays.held["accumulator_scratch"],
                    origin=(self.rank - number) % steps, first=number == 0,
                    last=number == steps - 1, follows=number > 0,
                )  # fmt: skip

        calls = {
            "ours": lambda: plan.run(stream, comm, arrays.args),
            "compute": kernels,
            "exchange": lambda: plan_of_one.run(stream, comm, arrays_of_one.args),
        }
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(task["rounds"] + 1):  # the first warms up
            for name in order(calls, number):
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                calls[name]()
                stop.record()
                comm.synchronize(stream)  # with a deadline, which the event has not
                samples[name].append(start.elapsed_time(stop))
        return {name: statistics.median(taken[1:]) for name, taken in samples.items()}


if __name__ == "__main__":
    main(TimedRank)
