"""The worker's gradients of the ring, compared with those of one process."""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import torch
import torch.distributed as dist
from helpers.failing_launches import failing_launches
from torch import nn
from torch.nn import functional
from torch.utils import checkpoint as ac

from baracuda_kernels.errors import BaracudaError
from baracuda_kernels.interop.torch import (
    _process_group,
    context_parallel,
    ring_attention,
    shard,
    unshard,
)
from baracuda_kernels.interop.torch._ring import ring_of

_INNER = {"bhsd": 2, "bshd": 1}
_WIDTH, _HEADS = 32, 4


class GradientTasks:
    rank: int
    device: torch.device

    def gradients(self, task: dict) -> dict:
        """Relative errors of dq, dk and dv, and of y, against one process."""
        layout, inner = task["layout"], _INNER[task["tensor_layout"]]
        whole = _leaves(task, self.device)
        weights = _weights(task, whole[0])
        ring = functools.partial(_loss, **_options(task), arrange=inner)
        mine = [_leaf(_to(shard(x.detach(), 2, None, layout), inner)) for x in whole]
        ours = [shard(x, 2, None, layout) for x in weights]
        loss = _in_mode(ring, task["mode"])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=task.get("autocast", False)):
            value = loss(*mine, *ours)
        value.backward()
        _exact_loss(task, *whole, *weights).backward()
        answer: dict[str, Any] = {"dtypes": [str(x.grad.dtype) for x in mine]}
        for name, x, exact in zip(("dq", "dk", "dv"), mine, whole, strict=True):
            found = unshard(_to(x.grad, inner), 2, None, layout)
            answer[name] = _relative(found, exact.grad)
        return answer

    def gradcheck(self, task: dict) -> dict:
        """Gradients of shard, ring and unshard as one function, on the first ranks."""
        group = dist.new_group(list(range(task["ranks"])))
        if self.rank >= task["ranks"]:
            return {}
        layout = task["layout"]

        def whole(q, k, v):
            parts = (shard(x, 2, group, layout) for x in (q, k, v))
            y, lse = ring_attention(
                *parts, group, is_causal=True, sequence_layout=layout, return_lse=True
            )
            return unshard(y, 2, group, layout), unshard(lse, 2, group, layout)

        torch.manual_seed(2)
        shapes = [(1, heads, 2 * task["ranks"], 3) for heads in (2, 1, 1)]
        leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
        torch.autograd.gradcheck(whole, leaves)
        x = torch.randn(2 * task["ranks"], 2, dtype=torch.float64, requires_grad=True)
        for deal in (
            lambda x: unshard(shard(x, 0, group, layout).sin(), 0, group, layout),
            lambda x: unshard(shard(x, 0, group, layout), 0, group, layout).exp(),
        ):
            torch.autograd.gradcheck(deal, x)
            torch.autograd.gradgradcheck(deal, x)
        return {"checked": True}

    def train_module(self, task: dict) -> dict:
        """Gradients of an unmodified module's parameters and input within `context_parallel`."""
        torch.manual_seed(4)
        module, call = _module(task["module"])
        module = module.to(self.device)
        whole = torch.randn(2, 8 * dist.get_world_size(), _WIDTH, device=self.device)
        weight = torch.randn_like(whole)
        mine, ours = _leaf(shard(whole, 1)), shard(weight, 1)
        run = _in_mode(call, task["mode"])
        try:
            with context_parallel():
                loss = (run(module, mine) * ours).sum()
                if task["backward"] == "inside":
                    loss.backward()
            if task["backward"] == "outside":
                loss.backward()
        except (BaracudaError, ac.CheckpointError) as error:
            return {"error": type(error).__name__, "message": str(error)}
        found = [unshard(mine.grad, 1)]
        for parameter in module.parameters():
            dist.all_reduce(parameter.grad)
            found.append(parameter.grad.clone())
        module.zero_grad()
        exact = _leaf(whole)
        (call(module, exact) * weight).sum().backward()
        truth = [exact.grad, *(p.grad for p in module.parameters())]
        off = [_relative(a, b) for a, b in zip(found, truth, strict=True)]
        return {"error": "", "off": max(off), "gradients": len(off)}

    def fsdp(self, task: dict) -> dict:
        """FSDP2 over all ranks of a mesh, whose second dimension is the ring, against one process."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(6)
        ranks = dist.get_world_size()
        names = ("dp", "cp")
        mesh = init_device_mesh(self.device.type, (ranks // 2, 2), mesh_dim_names=names)
        module, call = _module("nn.TransformerEncoderLayer, causal")
        whole = torch.randn(ranks // 2, 2, 16, _WIDTH)  # a batch for each data-parallel rank
        for batch in whole:
            call(module, batch).sin().sum().backward()
        exact = [parameter.grad.clone() for parameter in module.parameters()]
        module.zero_grad()
        fully_shard(module, mesh=mesh[names]._flatten("dp_cp"))
        ring = mesh["cp"]
        mine = shard(whole[mesh["dp"].get_local_rank()], 1, ring, "zigzag")
        with context_parallel(ring, sequence_layout="zigzag"):
            (call(module, mine).sin().sum() * ranks).backward()  # FSDP takes the mean
        found = [parameter.grad.full_tensor() for parameter in module.parameters()]
        return {"off": max(_relative(a, b) for a, b in zip(found, exact, strict=True))}

    def gradient_graph(self, task: dict) -> dict:
        """Replays of a captured step against eager ones, on inputs the capture never saw."""
        leaves = [_leaf(shard(x.detach(), 2)) for x in _leaves(task, self.device)]

        def step() -> list[torch.Tensor]:
            y = ring_attention(*leaves, is_causal=task["is_causal"])
            return [y, *torch.autograd.grad(y.sum(), leaves)]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        off = []
        for seed in (1, 2):
            torch.manual_seed(seed + self.rank)
            with torch.no_grad():
                for x in leaves:
                    x.normal_()
            graph.replay()
            torch.cuda.synchronize()
            pairs = zip(captured, step(), strict=True)
            off.append(max(_relative(a, b) for a, b in pairs))
        return {"off": max(off)}

    def steady_gradients(self, task: dict) -> dict:
        """Bytes that the allocator holds after each of some steps."""
        leaves = [_leaf(shard(x.detach(), 2)) for x in _leaves(task, self.device)]
        reserved = []
        for _ in range(task["calls"]):
            y = ring_attention(*leaves, is_causal=True)
            torch.autograd.grad(y.sum(), leaves)
            torch.cuda.synchronize()
            reserved.append(torch.cuda.memory_reserved())
        return {"reserved": reserved}

    def gradients_of_another_stream(self, task: dict) -> dict:
        """A forward on a stream of its own, whose inputs come late; backward from the default one."""
        leaves = [_leaf(shard(x.detach(), 2)) for x in _leaves(task, self.device)]
        exact = torch.autograd.grad(ring_attention(*leaves).sin().sum(), leaves)
        off = []
        side = torch.cuda.Stream()
        for _ in range(3):
            late = [torch.zeros_like(x) for x in leaves]
            torch.cuda.synchronize()
            with torch.cuda.stream(side):
                torch.cuda._sleep(20_000_000)
                operands = [
                    _leaf(x).data.copy_(y.detach()).requires_grad_() for x, y in zip(late, leaves)
                ]
                loss = ring_attention(*operands).sin().sum()
            found = torch.autograd.grad(loss, operands)
            torch.cuda.current_stream().wait_stream(side)
            off.append(max(_relative(a, b) for a, b in zip(found, exact, strict=True)))
        return {"off": max(off)}

    def deterministic_gradients(self, task: dict) -> dict:
        """Whether the kernel is deterministic, and whether two steps have the same bits."""
        leaves = [_leaf(shard(x.detach(), 2)) for x in _leaves(task, self.device)]
        torch.use_deterministic_algorithms(True)
        try:
            found = []
            for _ in range(4):
                y = ring_attention(*leaves, is_causal=True)
                found.append(torch.autograd.grad(y.sin().sum(), leaves))
        finally:
            torch.use_deterministic_algorithms(False)
        plans = ring_of("", self.device)._gradients._plans
        guarantees = [
            plan.precision_guarantee.deterministic for (_, on), plan in plans.items() if on
        ]
        same = all(torch.equal(a, b) for one in found[1:] for a, b in zip(one, found[0]))
        return {"guarantees": guarantees, "same": same}

    def unlike_losses(self, task: dict) -> dict:
        """Ranks whose losses use y, lse, or both: every rank's keys still get their gradients."""
        torch.manual_seed(5)
        rows = 6 * dist.get_world_size()
        whole = [torch.randn(1, 2, rows, 16, dtype=torch.float64) for _ in range(3)]
        mine = [_leaf(shard(x, 2)) for x in whole]
        y, lse = ring_attention(*mine, return_lse=True)
        uses = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)]
        of_y, of_lse = uses[self.rank]
        parts = [x.sum() for x, use in ((y.sin(), of_y), (lse.cos(), of_lse)) if use]
        sum(parts).backward()
        exact = [_leaf(x) for x in whole]
        y, lse = _attention(*exact, is_causal=False)
        scale = torch.tensor(uses, dtype=torch.float64).repeat_interleave(6, 0)
        ((y.sin() * scale[:, :1]).sum() + (lse.cos() * scale[:, 1]).sum()).backward()
        off = [_relative(unshard(x.grad, 2), one.grad) for x, one in zip(mine, exact, strict=True)]
        return {"off": max(off)}

    def one_goes_backward(self, task: dict) -> dict:
        """The errors if one rank calls the backward, and the others the forward again."""
        q, k, v = (torch.randn(1, 2, 8, 16, requires_grad=True) for _ in range(3))
        y = ring_attention(q, k, v)
        try:
            if self.rank == task["odd_rank"]:
                y.sum().backward()
            else:
                ring_attention(q, k, v)
        except BaracudaError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "", "message": ""}

    def backwards_in_other_orders(self, task: dict) -> dict:
        """The errors if the ranks ask for the gradients of two calls in different orders, or of
        different calls; and the gradients of a later loss."""
        q, k, v = (torch.randn(1, 2, 8, 16, requires_grad=True) for _ in range(3))
        losses = [ring_attention(q, k, v).sum(), ring_attention(2 * q, k, v).sum()]
        odd = self.rank == task["odd_rank"]
        try:
            if task["what"] == "orders":
                for loss in reversed(losses) if odd else losses:
                    loss.backward()
            elif task["what"] == "calls":
                losses[odd].backward()
            else:
                (losses[0] if odd else losses[0] + losses[1]).backward()
        except BaracudaError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "", "message": ""}

    def one_fails_to_launch(self, task: dict) -> dict:
        """The error of each rank if one cannot launch its part of a backward, in a new group."""
        group = dist.new_group()
        whole = torch.randn(1, 2, 96, 16, requires_grad=True)
        q, k, v = (shard(whole, 2, group) for _ in range(3))
        y = ring_attention(q, k, v, group)
        start = time.monotonic()
        error = None
        with failing_launches("backward", task["odd_rank"], task["step"]):
            try:
                y.sum().backward()
            except BaracudaError as failure:
                error = failure
        return {"error": type(error).__name__, "seconds": time.monotonic() - start}

    def one_recompiles(self, task: dict) -> dict:
        """Two steps of a compiled loss. One rank compiles again before the second."""
        q, k, v = (torch.randn(1, 2, 8, 16, requires_grad=True) for _ in range(3))
        loss = torch.compile(
            lambda q, k, v: ring_attention(q * 2, k, v).sin().sum(),
            fullgraph=True,
            backend="aot_eager",
        )
        values = []
        for step in range(2):
            if step and self.rank == task["odd_rank"]:
                torch._dynamo.reset()
                time.sleep(1)
            q.grad = None
            loss(q, k, v).backward()
            values.append(q.grad.norm().item())
        return {"same": values[0] == values[1] != 0}

    def groups_of_a_victim(self, task: dict) -> dict:
        """Groups of the first two ranks and one that will die in each."""
        self._groups = [dist.new_group([0, 1, 2 + i]) for i in range(dist.get_world_size() - 2)]
        return {}

    def die_in_backward(self, task: dict) -> dict:
        """The error of the other ranks, if one dies before or during its part of a backward."""
        group = self._groups[task["trial"]]
        whole = torch.randn(1, 2, 96, 16, requires_grad=True)
        q, k, v = (shard(whole, 2, group) for _ in range(3))
        y = ring_attention(q, k, v, group)
        if self.rank == 2 + task["trial"]:
            match task["where"]:
                case "before":
                    y.register_hook(lambda gradient: os._exit(1))
                case "gathering":
                    q.register_hook(lambda gradient: os._exit(1))
                case int(messages):
                    _die_after(messages)
        start = time.monotonic()
        try:
            y.sum().backward()
        except BaracudaError as error:
            return {"error": type(error).__name__, "seconds": time.monotonic() - start}
        return {"error": "", "seconds": time.monotonic() - start}


def _die_after(messages: int) -> None:
    """End this process at the end of that group of messages of its ring."""
    end, count = _process_group.GroupTransport.group_end, [0]

    def group_end(self: Any) -> None:
        count[0] += 1
        if count[0] == messages:
            os._exit(1)
        end(self)

    _process_group.GroupTransport.group_end = group_end


def _leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone().requires_grad_()


def _leaves(task: dict, device: torch.device) -> list[torch.Tensor]:
    torch.manual_seed(task.get("seed", 0))
    rows, width = task["rows"] * dist.get_world_size(), task.get("head_dim", 32)
    dtype = getattr(torch, task["dtype"])
    heads = (task["heads"], task["kv_heads"], task["kv_heads"])
    return [_leaf(torch.randn(2, h, rows, width).to(device, dtype)) for h in heads]


def _weights(task: dict, q: torch.Tensor) -> list[torch.Tensor]:
    """The factors of y and lse in the loss, which are their gradients, in the tested form."""
    b, h, s, d = q.shape
    of_y = torch.randn(b, h, s, d).to(q)
    of_lse = torch.randn(b, h, s).to(q.device, torch.promote_types(q.dtype, torch.float32))
    if task["dy"] == "expanded":
        of_y = torch.ones_like(of_y)
    return [of_y, of_lse if task["lse"] else torch.zeros_like(of_lse)]


def _options(task: dict) -> dict:
    return {"is_causal": task["is_causal"], "layout": task["layout"], "dy": task["dy"],
            "tensor_layout": task["tensor_layout"], "lse": task["lse"]}  # fmt: skip


def _loss(q, k, v, of_y, of_lse, *, is_causal, layout, dy, tensor_layout, lse, arrange):
    y, rows = ring_attention(
        q * 1.0, k, v, is_causal=is_causal, sequence_layout=layout, tensor_layout=tensor_layout,
        return_lse=True,
    )  # fmt: skip
    y = _to(y, arrange)
    match dy:
        case "expanded":
            value = y.sum()
        case "strided":  # the last dimension of dy is not the fastest in memory
            value = (y.transpose(2, 3).contiguous() * of_y.transpose(2, 3).contiguous()).sum()
        case _:
            value = (y * of_y).sum()
    return value + (rows * of_lse).sum() if lse else value


def _exact_loss(task, q, k, v, of_y, of_lse):
    y, lse = _attention(q, k, v, task["is_causal"])
    return (y * of_y.double()).sum() + (lse * of_lse.double()).sum()


def _attention(q, k, v, is_causal):
    """y and lse in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    if is_causal:
        hidden = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v, torch.logsumexp(scores, -1)


def _in_mode(call: Any, mode: str) -> Any:
    compiled, _, rest = mode.partition("+")
    if compiled in ("checkpoint", "selective", "reentrant"):
        compiled, rest = "eager", mode
    if rest:
        inner = call
        options = {"use_reentrant": rest == "reentrant"}
        if rest == "selective":
            saved = [torch.ops.baracuda.ring_attention.default]
            contexts = functools.partial(ac.create_selective_checkpoint_contexts, saved)
            options["context_fn"] = contexts
        call = lambda *args: ac.checkpoint(inner, *args, **options)
    if compiled == "eager":
        return call
    return torch.compile(call, fullgraph=True, backend=compiled)


def _module(what: str) -> tuple[nn.Module, Any]:
    if what == "nn.MultiheadAttention":
        module: nn.Module = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True)
        return module, lambda m, x: m(x, x, x, need_weights=False)[0]
    layer = nn.TransformerEncoderLayer(
        _WIDTH, _HEADS, dim_feedforward=48, dropout=0.0, batch_first=True
    )
    if what == "nn.TransformerEncoderLayer, causal":
        return layer, lambda m, x: m(
            x, nn.Transformer.generate_square_subsequent_mask(x.shape[1]), is_causal=True
        )
    if what == "scaled_dot_product_attention":

        def attend(m, x):
            heads = (p(x).view(*x.shape[:2], _HEADS, -1).transpose(1, 2) for p in m)
            return functional.scaled_dot_product_attention(*heads, is_causal=True)

        # The gradient of a bias of the keys is 0, so its relative error has no meaning.
        linear = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(3))
        return linear, lambda m, x: attend(m, x).transpose(1, 2).flatten(2)
    return layer, lambda m, x: m(x)


def _to(x: torch.Tensor, inner: int) -> torch.Tensor:
    """[B, H, S, D] to the order whose dimension `inner` is the sequence, and back."""
    return x if inner == 2 else x.transpose(1, 2)


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()
