"""The worker's gradients of a ring of plans."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch

import baracuda_kernels as bk
from baracuda_kernels.testing import torch_qkv

from .cuda_ring_gradients import (
    GpuGradients,
    by_steps,
    full_of,
    gradient_problem,
    poison,
)
from .failing_launches import failing_launches
from .gradients import NAMES, Problem
from .ring_gradients import GradientRank, ring_descriptor
from .rings import descriptor, preference, rank_arrays


def register(comm: bk.Communicator, held: dict[str, Any]) -> None:
    """Register the receive buffers, in the same order on every rank."""
    for name in ("kv_scratch_a", "kv_scratch_b", "kv_gradient_scratch"):
        if name in held:
            comm.register(held[name])


def prepared(comm: bk.Communicator, stream: bk.Stream, task: dict, *qkv: Any) -> tuple:
    """A plan of the task's direction, its arguments, and what those view."""
    desc = descriptor(*qkv[:2], "bf16")
    if task.get("direction") == "backward":
        plan = bk.RingAttentionBackwardPlan.select(desc, stream, preference("simt", "bf16"))
        lse = torch.zeros(qkv[0].shape[:3], device="cuda")
        problem = Problem(*qkv, torch.ones_like(qkv[0]))
        full = full_of(torch, "bf16")
        rank = GradientRank(plan, problem, qkv[0].clone(), lse, comm.world_size, full)
        return plan, rank.args, rank.held
    plan = bk.RingAttentionPlan.select(desc, stream, preference("sm80", "bf16"))
    arrays = rank_arrays(torch, plan, *qkv, comm.world_size)
    return plan, arrays.args, arrays.held


class RingGradientTasks:
    """Tasks of a rank."""

    rank: int
    comms: dict[str, bk.Communicator]
    backward: tuple[Any, ...]  # of `run_backward`: its stream, plan, arguments, and what those view

    def gradients(self, task: dict) -> dict:
        """This rank's part of a forward and a backward; dq, dk and dv go to the task's folder."""
        comm = self.comms[task.get("comm", "own")]
        ranks, layout, dtype = comm.world_size, task["layout"], task["dtype"]
        stream = bk.Stream(torch.cuda.current_stream())
        x = gradient_problem(torch, task)
        mine = [bk.shard(a, ranks, sequence_layout=layout)[comm.rank].contiguous() for a in x]
        q, k, v, dy = mine
        desc = ring_descriptor(q, k, layout, is_causal=task["is_causal"])
        chosen = preference(task["family"], dtype)
        forward = bk.RingAttentionPlan.select(desc, stream, chosen)
        plan = bk.RingAttentionBackwardPlan.select(desc, stream, chosen)
        arrays = rank_arrays(torch, forward, q, k, v, ranks)
        problem = Problem(q, k, v, dy)
        back = GradientRank(plan, problem, arrays.y, arrays.lse, ranks, full_of(torch, dtype))
        if "least_with_b" in task:
            back.save_memory(plan, with_kv_scratch_b=task["least_with_b"])
        args = back.args
        if task.get("register"):
            register(comm, arrays.held)
            register(comm, back.held)
        forward.run(stream, comm, arrays.args)

        def run() -> None:
            plan.run(bk.Stream(torch.cuda.current_stream()), comm, args)

        if task.get("graph"):
            run()
            comm.synchronize(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                run()
            run = graph.replay
        for _ in range(task.get("runs", 1)):
            time.sleep(task.get("late", 0) if comm.rank == task.get("late_rank") else 0)
            for name in ("dq", "dk", "dv", "scratch", "kv_gradient_scratch"):
                back.held[name].view(torch.uint8).fill_(255)
            run()
        comm.synchronize(stream)
        assert "least_with_b" not in task or not back.overruns()
        for name, found in zip(NAMES, back.gradients, strict=True):
            raw = found.contiguous().view(torch.uint8).cpu().numpy()
            raw.tofile(Path(task["folder"]) / f"{name}-{self.rank}.bin")
        return {"rank": comm.rank}

    def repeated_gradients(self, task: dict) -> dict:
        """The number of backward calls, of many, that differ in a bit from steps without an
        exchange.

        The calls are eager and replayed from a graph, and each rank's stream is held up at random.
        """
        comm, dtype = self.comms["own"], task["dtype"]
        x = Problem(*gradient_problem(torch, task))
        local = GpuGradients(torch, task["family"], dtype, x, comm.world_size,
                             layout=task["layout"], is_causal=task["is_causal"])  # fmt: skip
        expected = by_steps(torch, dtype, local)[self.rank]
        local.run()
        plan, mine = local.plan, local.ranks[self.rank]

        def differs() -> bool:
            return not all(map(torch.equal, mine.gradients, expected))

        answer = {"deterministic": plan.precision_guarantee.deterministic, "local": int(differs())}
        if task["register"]:
            register(comm, mine.held)
        stream = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        chance = random.Random(self.rank)

        def run() -> None:
            plan.run(bk.Stream(torch.cuda.current_stream()), comm, mine.args)

        with torch.cuda.stream(stream):
            for how in ("eager", "captured"):
                if how == "captured":
                    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                        run()
                answer[how] = 0
                for _ in range(task["runs"]):
                    poison(torch, mine)
                    torch.cuda._sleep(int(chance.choice((0, 0, 1, 4)) * chance.random() * 200_000))
                    run() if how == "eager" else graph.replay()
                    comm.synchronize(bk.Stream(stream))
                    answer[how] += differs()
        return answer

    def run_backward(self, task: dict) -> dict:
        """A backward that succeeds; `fail_launch` runs it again.

        It is a task of its own, so that no rank begins to fail while another still waits for this
        run: that one would be told of the failure.
        """
        comm = self.comms["own"]
        qkv = torch_qkv("normal", "bf16", 0, heads=2, query_len=128, head_dim=64)
        stream = torch.cuda.Stream()
        plan, args, held = prepared(comm, bk.Stream(stream), {"direction": "backward"}, *qkv)
        torch.cuda.synchronize()
        if task["register"]:
            register(comm, held)
        plan.run(bk.Stream(stream), comm, args)
        comm.synchronize(bk.Stream(stream))
        self.backward = stream, plan, args, held
        return {"state": comm.state}

    def fail_launch(self, task: dict) -> dict:
        """The backward of `run_backward`, in which the launches of rank `odd` fail from a step on,
        eager or while it is captured: the error that each rank raises, when, and what is left
        after it."""
        comm = self.comms["own"]
        stream, plan, args, _held = self.backward

        def run() -> None:
            if not task["graph"]:
                return plan.run(bk.Stream(stream), comm, args)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                plan.run(bk.Stream(stream), comm, args)

        def attempt(call: Any) -> BaseException | None:
            """The library's error, also where the end of a broken capture raised another."""
            try:
                call()
                comm.synchronize(bk.Stream(stream), 20)
            except (bk.BaracudaError, RuntimeError) as error:
                found: BaseException | None = error
                while found is not None and not isinstance(found, bk.BaracudaError):
                    found = found.__context__
                return found or error
            return None

        begin = time.monotonic()
        with failing_launches("backward", task["odd"], task["step"]):
            error = attempt(run)
            # A rank whose capture has succeeded waits for nothing, and hears of the end later.
            while error is None and comm.state == "healthy" and time.monotonic() - begin < 5:
                time.sleep(0.01)
            error = error or attempt(lambda: None)
        seconds = time.monotonic() - begin
        again = attempt(lambda: plan.run(bk.Stream(stream), comm, args))
        torch.cuda.synchronize()  # nothing hangs on the device
        return {"error": type(error).__name__, "message": str(error), "seconds": seconds,
                "state": comm.state, "again": type(again).__name__}  # fmt: skip
