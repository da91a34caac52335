"""Ring attention across the GPUs of one host: answers, speed beside others, memory.

    torchrun --nproc-per-node=8 -m benchmarks.scaling -o benchmarks/results/8x.json

One process per GPU; `mpirun` will do where RANK, WORLD_SIZE and MASTER_ADDR are set. Checks sampled
rows against float64, then times the ring (eager, and as a CUDA graph) beside the same work on one
GPU, an all-gather of K and V with PyTorch's attention, and PyTorch's `context_parallel`. Exit code
1 if an answer is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.oracle import attention, error_of
from helpers.tolerances import TOLERANCES
from torch.distributed.device_mesh import init_device_mesh

import baracuda_kernels as bk
from benchmarks import ROOT
from benchmarks.across_gpus import contenders
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.timing import interleaved
from benchmarks.source import require_own_sources
from benchmarks.timing import captured, summary

LAYOUTS = ("contiguous", "zigzag", "striped")
_SAMPLED_ROWS = 64


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if all answers are within tolerance."""
    options = _parser().parse_args(arguments)
    digest = require_own_sources(ROOT)
    dist.init_process_group("nccl")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.cuda.set_device(rank % torch.cuda.device_count())
    comm = bk.Communicator.from_torch(device=torch.cuda.current_device())
    mesh = init_device_mesh("cuda", (ranks,))
    shape = (options.heads, options.kv_heads, options.head_dim)
    rows: list[dict[str, Any]] = []
    failed = False
    for chunk, layout, causal in itertools.product(options.chunk, options.layout, (True, False)):
        problem = Problem(ranks, chunk, *shape, layout, causal)
        checked = check(problem, comm)
        failed |= checked["ours"] > TOLERANCES[checked["params"]["family"], "bf16"].relative
        new = [checked, memory(problem, comm), *steps(problem, comm)]
        new += speed(problem, comm, mesh, options.rounds)
        rows += new
        if rank == 0:
            _show(new)
    comm.close()
    if rank == 0 and options.output:
        header = {
            "schema": 1,
            "card": torch.cuda.get_device_name(),
            "ranks": ranks,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "source_hash": digest,
        }
        options.output.write_text(json.dumps({**header, "rows": rows}, indent=1) + "\n")
    dist.destroy_process_group()
    return 1 if failed else 0


def check(problem: Problem, comm: Any) -> dict[str, Any]:
    """`scaling_error`: relative error of sampled rows, the worst rank's; peer: one GPU's call."""
    ring = contenders.Ring(problem, comm)
    ring.y.fill_(float("nan"))
    ring.run()
    comm.synchronize(bk.Stream(torch.cuda.current_stream()), timeout=120)
    random = torch.Generator().manual_seed(comm.rank)
    rows = torch.randperm(problem.chunk, generator=random)[:_SAMPLED_ROWS].cuda()
    positions = problem.positions(comm.rank).cuda()[rows]
    k, v = (problem.whole(name, "cuda") for name in "kv")
    exact, _ = attention(ring.q[:, :, rows], k, v, is_causal=problem.causal, q_positions=positions)
    run, whole = contenders.one_gpu(problem)
    run()
    errors = [
        error_of(y.double().cpu().numpy(), exact.cpu().numpy())["relative"]
        for y in (ring.y[:, :, rows], whole[:, :, positions])
    ]
    worst = torch.tensor(errors, device="cuda")
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    ours, one_gpu = worst.tolist()
    return {
        "name": "scaling_error",
        "params": {**problem.params(), "family": ring.plan.family},
        "unit": "relative",
        "ours": ours,
        "peers": {"one_gpu": one_gpu},
    }


def memory(problem: Problem, comm: Any) -> dict[str, Any]:
    """`scaling_memory`: bytes that a rank allocates for shards, scratch, state and y."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ring = contenders.Ring(problem, comm)
    ring.run()
    torch.cuda.synchronize()
    # Making a shard passes through float32; what the ring keeps is what counts.
    kept = torch.cuda.memory_allocated() - before
    return {
        "name": "scaling_memory",
        "params": problem.params(),
        "unit": "bytes",
        "ours": kept,
        "peers": {},
    }


def steps(problem: Problem, comm: Any) -> list[dict[str, Any]]:
    """`scaling_step` rows: exposed milliseconds of each step, the worst rank's; of the third run."""
    ring, timeline = contenders.Ring(problem, comm), bk.RingTimeline()
    for _ in range(3):
        dist.barrier()
        ring.plan.run(torch.cuda.current_stream(), comm, ring.args, timeline=timeline)
    mine = [[step.exposed, step.compute, step.exchange] for step in timeline.steps]
    worst = torch.tensor(mine, device="cuda")
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return [
        {
            "name": "scaling_step",
            "params": {**problem.params(), "step": number},
            "unit": "ms",
            "ours": exposed,
            "peers": {"compute": compute, "exchange": exchange},
        }
        for number, (exposed, compute, exchange) in enumerate(worst.tolist())
    ]


def speed(problem: Problem, comm: Any, mesh: Any, rounds: int) -> list[dict[str, Any]]:
    """`scaling` rows, eager and captured: milliseconds; peers: ideal and the others."""
    ring = contenders.Ring(problem, comm)
    whole, _ = contenders.one_gpu(problem)
    calls = {
        "eager": ring.run,
        "graph": captured(ring.run),
        "one_gpu": whole,
        "all_gather": contenders.all_gather(problem, comm.rank),
    }
    with contenders.context_parallel(problem, mesh) as theirs:
        calls["context_parallel"] = theirs
        samples = interleaved(calls, rounds=rounds)
    found = []
    for what in ("eager", "graph"):
        others = {name: samples[name] for name in samples if name not in ("eager", "graph")}
        ours, peers = summary({"ours": samples[what], **others})
        peers["ideal"] = peers.pop("one_gpu") / problem.ranks
        row = {"name": "scaling", "params": {**problem.params(), "what": what}, "unit": "ms"}
        found.append({**row, "ours": ours, "peers": peers})
    return found


def _show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        p = row["params"]
        text = f"{row['name']:15} P {p['ranks']} chunk {p['chunk']:6} {p['layout']:10} "
        text += f"{'causal' if p['causal'] else 'full':6} {row['ours']:.4g} {row['unit']}"
        for name, value in row["peers"].items():
            text += f", {name} {value:.4g}"
        if row["name"] == "scaling":
            text += f" ({p['what']}: {100 * row['peers']['ideal'] / row['ours']:.1f} % of ideal)"
        print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--chunk", type=int, nargs="+", default=[8192, 32768], help="rows a GPU")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, metavar="JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
