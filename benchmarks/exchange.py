"""Copy engines beside NCCL between the GPUs of one host: bytes a second, and what steps lose by them.

    torchrun --standalone --nproc-per-node=2 -m benchmarks.exchange

One process per GPU. What `benchmarks.scaling` measures of the exchange by peer and of NCCL's, for
every way in which the caller's stream can wait for a copy: a ring's runs, eager and as a CUDA graph,
beside its own steps without an exchange and the same work on one GPU (`ideal`, over the ranks), in
interleaved rounds. `together`: K and V of the caller lie together, and go as one copy.
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
from benchmarks.across_gpus.contenders import Ring, forget_buffers, one_gpu
from benchmarks.across_gpus.hops import Way, speed_row, steps_of
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.timing import interleaved
from benchmarks.timing import captured

# name -> (exchange, how the caller's stream waits)
WAYS = {
    "nccl": ("nccl", ""),
    "event": ("peer", "event"),
    "value": ("peer", "value"),
    "gate": ("peer", "gate"),
    "together": ("peer", "gate"),
}
_MAX_CTAS = 8


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    device = torch.device("cuda", int(os.environ["RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    ways = {}
    for name in options.way:
        exchange, os.environ["BARACUDA_PEER_WAIT"] = WAYS[name]
        comm = bk.Communicator.from_torch(
            device=device.index, exchange=exchange, max_ctas=_MAX_CTAS, timeout=60.0
        )
        ways[name] = Way.of(comm, _MAX_CTAS)
    # What PyTorch's op makes of the defaults.
    os.environ |= {"BARACUDA_EXCHANGE": "auto", "BARACUDA_PEER_WAIT": ""}
    rows = []
    for chunk in options.chunk:
        for layout, causal in (("zigzag", True), ("contiguous", False)):
            problem = Problem(ranks, chunk, 32, 8, 128, layout, causal)
            rows += _measure(problem, ways, options.rounds, rank == 0)
            if rank == 0 and options.out is not None:
                options.out.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"card": torch.cuda.get_device_name(), "rows": rows}, indent=0)
                (options.out / f"exchange-{ranks}.json").write_text(text)
    clear_cache()
    forget_buffers()
    for way in ways.values():
        way.comm.close()
    dist.destroy_process_group()
    return 0


def _measure(problem: Problem, ways: dict[str, Way], rounds: int, says: bool) -> list[dict]:
    device = torch.device("cuda", torch.cuda.current_device())
    ideal = one_gpu(problem, problem.whole(device))
    calls: dict[str, Callable[[], Any]] = {"ideal": ideal.call}
    rows, expected = [], None
    for name, way in ways.items():
        ring = Ring(problem, way.comm, together=name == "together")
        ring.run()
        way.comm.synchronize(torch.cuda.current_stream())
        expected = ring.y.clone() if expected is None else expected
        assert torch.equal(ring.y, expected), f"{name}: other bits"
        calls[name] = ring.run
        calls[f"{name}, graph"] = replay = captured(ring.run)
        ring.y.fill_(float("nan"))
        replay()
        way.comm.synchronize(torch.cuda.current_stream())
        assert torch.equal(ring.y, expected), f"{name}, graph: other bits"
        row = speed_row(problem, way, ring)
        rows.append(row | {"params": row["params"] | {"way": name}})
        if says:
            print(f"{_problem(problem)} {name:16} {row['ours']:4.0f} GB/s, alone "
                  f"{row['peers']['alone']:4.0f}, late {row['peers']['late']:4.0f}", flush=True)  # fmt: skip
    calls["torch op"] = lambda: ring_attention(
        ring.q, ring.k, ring.v, is_causal=problem.causal, sequence_layout=problem.layout
    )
    assert torch.equal(calls["torch op"](), expected), "torch op: other bits"
    calls["steps"] = steps_of(ring, problem)
    samples = interleaved(calls, {}, rounds=rounds)
    for name in calls:
        ms = statistics.median(samples[name])
        ratio = [i / problem.ranks / x for i, x in zip(samples["ideal"], samples[name], strict=True)]
        over = [x / s for x, s in zip(samples[name], samples["steps"], strict=True)]
        of_ideal = 1.0 if name == "ideal" else statistics.median(ratio)
        peers = {"steps": ms / statistics.median(over), "ideal": ms * of_ideal}
        rows.append({"name": "exchange_run", "params": problem.params() | {"way": name},
                     "unit": "ms", "ours": ms, "peers": peers})  # fmt: skip
        if says:
            print(f"{_problem(problem)} {name:16} {ms:8.4f} ms {100 * of_ideal:5.1f} % "
                  f"x{statistics.median(over):.3f} steps", flush=True)  # fmt: skip
    return rows


def _problem(problem: Problem) -> str:
    return f"P {problem.ranks} {problem.chunk:6} {'causal' if problem.causal else 'full':6}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange")
    parser.add_argument("--chunk", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 32768])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--out", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
