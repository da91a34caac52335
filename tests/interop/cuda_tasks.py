"""The worker's tasks on CUDA alone: Inductor's graphs, and ranks that fail or compile alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from baracuda_kernels.errors import BaracudaError
from baracuda_kernels.interop.torch import ring_attention, shard, synchronize
from baracuda_kernels.interop.torch._ring import ring_of


class CudaTasks:
    rank: int
    device: torch.device

    def inductor_graphs(self, task: dict) -> dict:
        """Steps of a layer compiled with Inductor's own CUDA graphs, against eager steps."""
        torch.manual_seed(7)
        rows, width = task["rows"] * task["world_size"], 64
        weight = torch.randn(3, width, width, device=self.device).bfloat16() / 8
        weight.requires_grad_()

        def loss(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            q, k, v = (x @ w for w in weight.unbind())
            y = ring_attention(q, k[:, :2], v[:, :2], is_causal=True, sequence_layout="zigzag")
            y = ring_attention(y, k[:, :2], v[:, :2], is_causal=True, sequence_layout="zigzag")
            return y.float().sin().sum()

        compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
        off, values = [], []
        try:
            for _ in range(task["steps"]):
                whole = torch.randn(1, 4, rows, width, device=self.device).bfloat16()
                x = shard(whole, 2, None, "zigzag").requires_grad_()
                torch.compiler.cudagraph_mark_step_begin()
                value = compiled(x, weight)
                found = [value.detach().clone()]
                found += [g.clone() for g in torch.autograd.grad(value, (x, weight))]
                exact = loss(x, weight)
                both = zip(found, [exact, *torch.autograd.grad(exact, (x, weight))], strict=True)
                off.append(max(_relative(a, b) for a, b in both))
                values.append(exact.item())
            recorded = _recorded(self.device)
        finally:
            torch.compiler.reset()  # NCCL ends no communicator whose work a graph holds
        return {"off": max(off), "recorded": recorded, "different": len(set(values))}

    def endure_steps(self, task: dict) -> dict:
        """Runs steps until an error: reports the error, its time, and the error of a later call.

        A victim with `fault` sends itself that signal in its backward pass, once the others may be in
        theirs; else whoever tests ends it.
        """
        leaves = [
            torch.randn(1, h, 1024, 64, device=self.device, dtype=torch.bfloat16).requires_grad_()
            for h in (4, 2, 2)
        ]
        warm = 3  # the work of first calls is not tested here

        def die(gradient: torch.Tensor) -> None:
            time.sleep(0.2)
            os.kill(os.getpid(), getattr(signal, task["fault"]))

        def step(number: int) -> None:
            if number == warm and self.rank == task["victim"]:
                (Path(task["folder"]) / "warm").touch()
            y = ring_attention(*leaves, is_causal=True, sequence_layout="zigzag")
            if number == warm and self.rank == task["victim"] and task.get("fault"):
                y.register_hook(die)
            torch.autograd.grad(y.sum(), leaves)
            synchronize(timeout=60.0 if number < warm else task["seconds"])

        end, number = time.monotonic() + 60, 0
        error, message, exchange = "no error", "", []
        while time.monotonic() < end:
            begun = time.time()
            try:
                step(number)
            except BaracudaError as failure:
                error, message = type(failure).__name__, str(failure)
                break
            number += 1
            if number == 1:
                exchange = [hop.kind for hop in ring_of("", self.device).comm.exchange]
        answer = {"error": error, "message": message, "steps": number, "at": time.time()}
        answer["seconds"] = answer["at"] - begun  # of the step that failed
        answer["exchange"] = exchange
        try:
            ring_attention(*leaves)
            answer["again"] = ""
        except BaracudaError as failure:
            answer["again"] = type(failure).__name__
        return answer

    def recompiles_alone(self, task: dict) -> dict:
        """Steps of a compiled loss. One rank compiles again before each step but the first."""
        torch.manual_seed(8 + self.rank)
        leaves = [
            torch.randn(1, 2, 256, 64, device=self.device, dtype=torch.bfloat16).requires_grad_()
            for _ in range(3)
        ]
        compiled = torch.compile(
            lambda q, k, v: ring_attention(q * 2, k, v).float().sin().sum(), fullgraph=True
        )
        values = []
        for number in range(task["steps"]):
            if number and self.rank == task["odd_rank"]:
                torch._dynamo.reset()
                time.sleep(1)
            found = torch.autograd.grad(compiled(*leaves), leaves)
            synchronize(timeout=60.0)
            values.append([g.double().norm().item() for g in found])
        off = max(abs(a / b - 1) for one in values for a, b in zip(one, values[0], strict=True))
        return {"off": off, "zero": min(values[0]) == 0.0, "steps": len(values)}


def _recorded(device: torch.device) -> int:
    """How many graphs Inductor has recorded in this process."""
    from torch._inductor.cudagraph_trees import get_container

    manager = get_container(device.index).tree_manager
    return 0 if manager is None else sum(map(len, manager.roots.values()))


def _relative(found: Any, exact: Any) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())
