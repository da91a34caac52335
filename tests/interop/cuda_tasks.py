"""The worker's tasks on CUDA alone: Inductor's graphs, and rings of which a rank fails in a step."""

from __future__ import annotations

from typing import Any

import torch

from baracuda_kernels.interop.torch import ring_attention, shard


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


def _recorded(device: torch.device) -> int:
    """How many graphs Inductor has recorded in this process."""
    from torch._inductor.cudagraph_trees import get_container

    manager = get_container(device.index).tree_manager
    return 0 if manager is None else sum(map(len, manager.roots.values()))


def _relative(found: Any, exact: Any) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())
