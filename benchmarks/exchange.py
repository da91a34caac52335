"""Copy engines beside NCCL between the GPUs of one host: bytes a second, and what steps lose by them.

    torchrun --standalone --nproc-per-node=2 -m benchmarks.exchange

One process per GPU. What `benchmarks.scaling` measures of the exchange by peer and of NCCL's, for
every way in which the caller's stream can wait for a copy: a ring's runs, eager and as a CUDA graph,
beside its own steps without an exchange (eager and as a graph), the same work on one GPU (`ideal`,
over the ranks), PyTorch's op and, at 8192 rows, its `context_parallel` in the fastest of its forms, in
interleaved rounds. `together`: K and V of the caller lie together, and go as one copy. `peer`: as the
library chooses. Last comes every figure that has a goal, with it and its floor.
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
from torch.distributed.device_mesh import init_device_mesh

import baracuda_kernels as bk
from baracuda_kernels.interop.torch import clear_cache, ring_attention
from benchmarks.across_gpus import torch_cp
from benchmarks.across_gpus.contenders import Contender, Ring, forget_buffers, one_gpu
from benchmarks.across_gpus.goals import verdicts
from benchmarks.across_gpus.hops import Way, speed_row, steps_of
from benchmarks.across_gpus.problem import Problem, Whole
from benchmarks.across_gpus.timing import interleaved, slowest
from benchmarks.timing import captured

# name -> (exchange, how the caller's stream waits)
WAYS = {
    "peer": ("peer", ""),
    "nccl": ("nccl", ""),
    "event": ("peer", "event"),
    "value": ("peer", "value"),
    "gate": ("peer", "gate"),
    "together": ("peer", "gate"),
}
_MAX_CTAS = 8
_ROWS_OF_OTHERS = 8192


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
    mesh = init_device_mesh("cuda", (ranks,)) if options.others else None
    for chunk in options.chunk:
        for layout, causal in (("zigzag", True), ("contiguous", False)):
            problem = Problem(ranks, chunk, 32, 8, 128, layout, causal)
            rows += _measure(problem, ways, mesh, options.rounds, rank == 0)
            if rank == 0 and options.out is not None:
                options.out.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"card": torch.cuda.get_device_name(), "rows": rows}, indent=0)
                (options.out / f"exchange-{ranks}.json").write_text(text)
    if rank == 0:
        print(*verdicts(rows), sep="\n", flush=True)
    clear_cache()
    forget_buffers()
    for way in ways.values():
        way.comm.close()
    dist.destroy_process_group()
    return 0


def _measure(
    problem: Problem, ways: dict[str, Way], mesh: Any, rounds: int, says: bool
) -> list[dict]:
    device = torch.device("cuda", torch.cuda.current_device())
    whole = problem.whole(device)
    # By (way, what).
    calls: dict[tuple[str, str], Callable[[], Any]] = {("", "ideal"): one_gpu(problem, whole).call}
    around: dict[tuple[str, str], Callable[[], Any]] = {}
    rows, expected = [], None
    for name, way in ways.items():
        ring = Ring(problem, way.comm, together=name == "together")
        ring.run()
        way.comm.synchronize(torch.cuda.current_stream())
        expected = ring.y.clone() if expected is None else expected
        assert torch.equal(ring.y, expected), f"{name}: other bits"
        calls[name, "eager"] = ring.run
        calls[name, "graph"] = replay = captured(ring.run)
        ring.y.fill_(float("nan"))
        replay()
        way.comm.synchronize(torch.cuda.current_stream())
        assert torch.equal(ring.y, expected), f"{name}, graph: other bits"
        row = speed_row(problem, way, ring)
        rows.append(row | {"params": row["params"] | {"way": name}})
        if says:
            print(f"{_problem(problem)} {name:16} {row['ours']:4.0f} GB/s, alone "
                  f"{row['peers']['alone']:4.0f}, late {row['peers']['late']:4.0f}", flush=True)  # fmt: skip
    calls["", "torch op"] = lambda: ring_attention(
        ring.q, ring.k, ring.v, is_causal=problem.causal, sequence_layout=problem.layout
    )
    assert torch.equal(calls["", "torch op"](), expected), "torch op: other bits"
    calls["", "steps"] = steps_of(ring, problem)
    calls["", "steps, graph"] = captured(calls["", "steps"])
    form = None
    if mesh is not None and problem.chunk == _ROWS_OF_OTHERS:
        form, other = _context_parallel(problem, way.comm.rank, whole, mesh)
        if other is not None:
            what = "", "context_parallel"
            calls[what], around[what] = other.call, other.around
    samples = interleaved(calls, around, rounds=rounds)

    def ratio(what: tuple[str, str], other: tuple[str, str]) -> float:
        pairs = zip(samples[what], samples[other], strict=True)
        return statistics.median(x / y for x, y in pairs)

    first = next(iter(ways))
    for way_name, what in calls:
        key, name = (way_name, what), way_name or first
        ms = statistics.median(samples[key])
        steps = ("", "steps, graph") if "graph" in what else ("", "steps")
        over = {"ideal": ratio(key, ("", "ideal")) * problem.ranks, "steps": ratio(key, steps),
                "eager": ratio(key, (name, "eager"))}  # fmt: skip
        if what == "ideal":
            over["ideal"] = 1.0
        params = problem.params() | {"way": name, "what": what}
        if what == "context_parallel":
            params["form"] = str(form)
        rows.append({"name": "exchange_run", "params": params, "unit": "ms", "ours": ms,
                     "peers": {peer: ms / value for peer, value in over.items()}})  # fmt: skip
        if says:
            print(f"{_problem(problem)} {name + ', ' + what:24} {ms:8.4f} ms "
                  f"{100 / over['ideal']:5.1f} % x{over['steps']:.3f} steps "
                  f"x{over['eager']:.3f} eager", flush=True)  # fmt: skip
    return rows


def _context_parallel(
    problem: Problem, rank: int, whole: Whole, mesh: Any
) -> tuple[torch_cp.Form | None, Contender | None]:
    """PyTorch's in the form that is fastest here; what it answers is `benchmarks.scaling`'s to check."""
    times: dict[torch_cp.Form, float] = {}
    forms: dict[torch_cp.Form, Contender] = {}
    for form in torch_cp.FORMS:
        other = torch_cp.context_parallel(problem, rank, whole, mesh, form)
        runs = True
        try:
            with other.around():
                other.call()
                torch.cuda.synchronize()
        except Exception:  # noqa: BLE001 - whatever it is, the other forms go on
            runs = False
        if slowest(float(not runs)):
            continue
        (times[form],) = interleaved({form: other.call}, {form: other.around}, rounds=1)[form]
        forms[form] = other
    best = min(times, key=times.__getitem__) if times else None
    return best, forms.get(best)


def _problem(problem: Problem) -> str:
    return f"P {problem.ranks} {problem.chunk:6} {'causal' if problem.causal else 'full':6}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange")
    parser.add_argument("--chunk", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 32768])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-others", dest="others", action="store_false")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
