"""Copy engines beside NCCL between the GPUs of one host: bytes a second, and what steps lose by them.

    torchrun --standalone --nproc-per-node=2 -m benchmarks.exchange --out benchmarks/results

One process per GPU. Times a ring's runs with every exchange there is, eager and as a CUDA graph,
beside its own steps without an exchange and the same work on one GPU (`ideal`, over the ranks), in
interleaved rounds; the speed of an exchange is from a timeline, beside steps and next to none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import baracuda_kernels as bk
from baracuda_kernels.interop.torch import clear_cache, ring_attention
from benchmarks.across_gpus.contenders import Ring, one_gpu, stream_of
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.timing import interleaved, slowest

# name -> (exchange, how the caller's stream waits)
WAYS = {
    "nccl": ("nccl", ""),
    "event": ("peer", "event"),
    "value": ("peer", "value"),
    "gate": ("peer", "gate"),
}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    device = torch.device("cuda", int(os.environ["RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    comms = {}
    for name in options.way:
        exchange, os.environ["BARACUDA_PEER_WAIT"] = WAYS[name]
        comms[name] = bk.Communicator.from_torch(
            device=device.index, exchange=exchange, timeout=60.0
        )
    # What PyTorch's op makes of the defaults.
    os.environ |= {"BARACUDA_EXCHANGE": "auto", "BARACUDA_PEER_WAIT": ""}
    rows = []
    for layout, causal in (("zigzag", True), ("contiguous", False)):
        for chunk in options.chunk:
            problem = Problem(ranks, chunk, 32, 8, 128, layout, causal)
            found = _measure(problem, comms, options.rounds)
            rows += found
            if rank == 0:
                for row in found:
                    print(_line(row), flush=True)
    if rank == 0 and options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"ranks": ranks, "card": torch.cuda.get_device_name(), "rows": rows})
        (options.out / f"exchange-{ranks}.json").write_text(text)
    clear_cache()
    for comm in comms.values():
        comm.close()
    dist.destroy_process_group()
    return 0


def _measure(problem: Problem, comms: dict[str, Any], rounds: int) -> list[dict]:
    device = torch.device("cuda", torch.cuda.current_device())
    whole = problem.whole(device)
    ideal = one_gpu(problem, whole)
    calls: dict[str, Callable[[], Any]] = {"ideal": ideal.call}
    rings, graphs, speeds, alone = {}, [], {}, {}
    expected = None
    for name, comm in comms.items():
        ring = rings[name] = Ring(problem, comm)
        if name != "nccl":
            comm.register(ring._scratch)
        ring.run()
        comm.synchronize(torch.cuda.current_stream())
        expected = ring.y.clone() if expected is None else expected
        assert torch.equal(ring.y, expected), f"{name}: other bits"
        calls[name] = ring.run
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            ring.run()
        ring.y.fill_(float("nan"))
        graph.replay()
        comm.synchronize(torch.cuda.current_stream())
        assert torch.equal(ring.y, expected), f"{name}, graph: other bits"
        graphs.append(graph)
        calls[f"{name}, graph"] = graph.replay
        speeds[name] = _speed(ring, problem)
        alone[name] = _speed(_Alone(problem, ring), problem, runs_before=3)
    calls["torch op"] = lambda: ring_attention(
        ring.q, ring.k, ring.v, is_causal=problem.causal, sequence_layout=problem.layout
    )
    assert torch.equal(calls["torch op"](), expected), "torch op: other bits"
    calls["steps"] = _steps(rings[next(iter(rings))], problem)
    samples = interleaved(calls, {}, rounds=rounds)
    del graphs
    best = {name: statistics.median(values) for name, values in samples.items()}
    rows = []
    for name in calls:
        ratio = [i / problem.ranks / x for i, x in zip(samples["ideal"], samples[name], strict=True)]
        over = [x / s for x, s in zip(samples[name], samples["steps"], strict=True)]
        rows.append({
            "name": "exchange", "way": name, "params": problem.params(), "ms": best[name],
            "of_ideal": 1.0 if name == "ideal" else statistics.median(ratio),
            "over_steps": statistics.median(over), "gb_s": speeds.get(name),
            "gb_s_alone": alone.get(name),
        })  # fmt: skip
    return rows


class _Alone:
    """A ring that moves the same K and V for a few queries."""

    def __init__(self, problem: Problem, ring: Ring) -> None:
        self._comm, q = ring.comm, ring.q[:, : problem.kv_heads, :64].contiguous()
        desc = bk.RingAttentionDescriptor(
            1, problem.kv_heads, 64, problem.chunk, problem.head_dim, element=bk.ElementKind.BF16
        )
        self._plan = bk.RingAttentionPlan.select(stream_of(q.device), desc)
        self._args = bk.RingAttentionArgs(
            q=q, k=ring.k, v=ring.v, y=torch.empty_like(q), kv_scratch_a=ring._scratch[0],
            kv_scratch_b=ring._scratch[1], accumulator_scratch=ring._state,
        )  # fmt: skip

    def run(self, timeline: bk.RingTimeline | None) -> None:
        self._plan.run(torch.cuda.current_stream(), self._comm, self._args, timeline=timeline)


def _speed(ring: Ring | _Alone, problem: Problem, *, runs_before: int = 0) -> float:
    """GB/s each way of the first exchange, from the grant to the arrival, the neighbour's being late
    included: of a run that begins on all ranks at once, or behind others that bring them together."""
    times = []
    timeline = bk.RingTimeline()
    for _ in range(7):
        torch.cuda.synchronize()
        dist.barrier()
        torch.cuda._sleep(2_000_000)  # all is enqueued before anything begins
        for _ in range(runs_before):
            ring.run(None)
        ring.run(timeline)
        times.append(timeline.steps[0].exchange)
    nbytes = 2 * problem.kv_heads * problem.chunk * problem.head_dim * 2
    return nbytes / slowest(statistics.median(times)) / 1e6


def _steps(ring: Ring, problem: Problem) -> Callable[[], None]:
    """The rank's own steps, nothing moved: each on keys that are here already."""
    rank, ranks = ring.comm.rank, problem.ranks
    device = ring.q.device

    def call() -> None:
        stream = stream_of(device)
        for step in range(ranks):
            ring.plan.step(
                stream, q=ring.q, k=ring.k, v=ring.v, y=ring.y, rank=rank,
                origin=(rank - step) % ranks, world_size=ranks, first=step == 0,
                last=step == ranks - 1, accumulator_scratch=ring._state,
            )  # fmt: skip

    return call


def _line(row: dict[str, Any]) -> str:
    p = row["params"]
    mask = "causal" if p["causal"] else "full"
    speed = "" if row["gb_s"] is None else f" {row['gb_s']:4.0f} GB/s, alone {row['gb_s_alone']:4.0f}"
    return (f"P {p['ranks']} {p['chunk']:6} {mask:6} {row['way']:12} {row['ms']:8.4f} ms "
            f"{100 * row['of_ideal']:5.1f} % x{row['over_steps']:.3f} steps{speed}")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange")
    parser.add_argument("--chunk", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 32768])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--out", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
