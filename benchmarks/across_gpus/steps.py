"""Rows of `benchmarks.training`: what a training step of one attention layer takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import sdpa_kernel

import baracuda_kernels as bk
from baracuda_kernels.interop.torch import clear_cache, ring_attention
from baracuda_kernels.interop.torch._ring import ring_of
from benchmarks.across_gpus import torch_cp
from benchmarks.across_gpus.contenders import Contender, balanced_layout, stream_of
from benchmarks.across_gpus.others import admitted, fastest_form, say
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.timing import interleaved, slowest
from benchmarks.rows import Row, row
from benchmarks.timing import not_of_torch, summary

# Relative difference of a rank's gradients from those of one GPU: both round to bf16.
_TOLERANCE = 6e-3
# Others keep 16-bit partial gradients; beyond this it is another answer.
_PEER_TOLERANCE = 0.03
_LONG_FLOPS = 5e13

# dq, dk, dv of a rank's rows, [1, H, rows, D].
Step = Callable[[], Sequence[torch.Tensor]]


class TrainingMeasures:
    """Measures steps on the ranks of the default group, all ranks alike."""

    def __init__(self, mesh: Any) -> None:
        self._mesh, self._rank = mesh, mesh.get_local_rank()
        self._device = torch.device("cuda", torch.cuda.current_device())
        self.failed = False

    def rows(self, problem: Problem, rounds: int) -> list[Row]:
        """`training`: ms of a step, and of its passes; `memory`: peak bytes of a step."""
        device = self._device
        self._begin_anew()
        q, k, v = problem.whole(device)
        dy = torch.randn(q.shape, generator=torch.Generator(device).manual_seed(99), device=device)
        operands = [q, k, v, dy.to(q.dtype)]
        del dy
        layout = balanced_layout(problem)
        one_gpu = _one_gpu(problem, operands)
        exact = one_gpu()
        ours, forward, backward = self._ours(problem, operands)
        before = not_of_torch()
        off = self._off(problem, problem.layout, ours(), exact)
        if not off <= _TOLERANCE:
            say(self._rank, f"WRONG: gradients differ by {off:.2e} from one GPU's: {problem}")
            self.failed = True
        # Receive buffers are the library's own, and stay.
        kept = slowest(float(not_of_torch() - before))
        memory = {"ours": self._peak(ours) + kept}

        def other_off(_: Contender, gradients: Any) -> float:
            return self._off(problem, layout, gradients, exact)

        form, found = fastest_form(
            self._rank, lambda form: self._context_parallel(problem, operands, form), other_off,
            _PEER_TOLERANCE,
        )  # fmt: skip
        others = {} if found is None else {"context_parallel": found}
        other = _ring_flash_attention(problem, self._shards(problem, operands, layout))
        if other is not None and admitted(
            self._rank, "ring_flash_attention", other, other_off, _PEER_TOLERANCE
        ):
            others["ring_flash_attention"] = other
        for name, one in others.items():
            with one.around():
                memory[name] = self._peak(one.call)
        around = {name: one.around for name, one in others.items()}
        calls = {
            "ours": ours, "forward": forward, "backward": backward(), "one_gpu": one_gpu,
            **{name: one.call for name, one in others.items()},
        }  # fmt: skip
        rounds = min(rounds, 5) if problem.flops > _LONG_FLOPS else rounds
        samples = interleaved(calls, around, rounds=rounds)
        ways = {hop.kind for hop in getattr(ring_of("", device).comm, "exchange", ())}
        exchange = {"exchange": "+".join(sorted(ways)) or "none"}
        params = {**problem.params(), **exchange, "rounds": rounds, "context_parallel": str(form)}
        rows = []
        for what in ("step", "forward", "backward"):
            name = "ours" if what == "step" else what
            whole_steps = {n: s for n, s in samples.items() if n not in ("forward", "backward")}
            compared = whole_steps if what == "step" else {}
            mine, peers = summary({**compared, name: samples[name]}, name)
            if what == "step":
                peers["ideal"] = peers.pop("one_gpu") / problem.ranks
            rows.append(row("training", {**params, "what": what}, mine, peers))
            mask, over = "causal" if problem.causal else "full", peers.items()
            say(self._rank, f"P {problem.ranks} {problem.chunk:6} {mask:6} {what:8} {mine:8.3f} ms, "
                "over ours: " + ", ".join(f"{n} {x / mine:.3f}" for n, x in over))  # fmt: skip
        peak = memory.pop("ours")
        rows.append(row("memory", {**problem.params(), **exchange}, peak, memory))
        beside = {name: round(size / 1e6) for name, size in memory.items()}
        say(self._rank, f"peak MB {peak / 1e6:.0f}, {beside}")
        return rows

    def _begin_anew(self) -> None:
        """Receive buffers are kept, and would be those of the problem before. What else is made
        once, communicators above all, is made before memory is looked at."""
        clear_cache()
        dist.barrier()
        tiny = Problem(self._mesh.size(), 64, 4, 4, 128, "zigzag", True)
        self._ours(tiny, [*tiny.whole(self._device), tiny.whole(self._device).q])[0]()

    def _ours(
        self, problem: Problem, operands: list[torch.Tensor]
    ) -> tuple[Step, Callable[[], torch.Tensor], Callable[[], Step]]:
        """The step, its forward pass, and what makes its backward pass, which keeps a forward's."""
        *inputs, dy = self._shards(problem, operands, problem.layout)

        def forward() -> torch.Tensor:
            return ring_attention(
                *inputs, is_causal=problem.causal, sequence_layout=problem.layout
            )

        def backward() -> Step:
            y = forward()
            return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)

        return lambda: torch.autograd.grad(forward(), inputs, dy), forward, backward

    def _shards(
        self, problem: Problem, operands: list[torch.Tensor], layout: str
    ) -> list[torch.Tensor]:
        """q, k, v and dy of this rank; the first three want gradients."""
        at = problem.positions(self._rank, layout).to(self._device)
        *inputs, dy = (x[:, :, at] for x in operands)
        return [*(x.requires_grad_() for x in inputs), dy]

    def _context_parallel(
        self, problem: Problem, operands: list[torch.Tensor], form: torch_cp.Form
    ) -> Contender:
        layout = balanced_layout(problem)
        q, k, v, dy = self._shards(problem, operands, layout)
        group = problem.heads // problem.kv_heads
        repeated = form.heads == "repeated"

        def step() -> tuple[torch.Tensor, ...]:
            keys, values = (x.repeat_interleave(group, 1) for x in (k, v)) if repeated else (k, v)
            with sdpa_kernel(torch_cp.BACKENDS[form.backend]):
                y = torch.nn.functional.scaled_dot_product_attention(
                    q, keys, values, is_causal=problem.causal, enable_gqa=not repeated
                )
                return torch.autograd.grad(y, (q, k, v), dy)

        rows = problem.positions(self._rank, layout)
        return Contender(step, rows, lambda: torch_cp.patched(problem, self._mesh, form.rotation))

    def _off(
        self,
        problem: Problem,
        layout: str,
        found: Sequence[torch.Tensor],
        exact: Sequence[torch.Tensor],
    ) -> float:
        """The largest relative difference of dq, dk and dv from one GPU's, on any rank."""
        at = problem.positions(self._rank, layout).to(self._device)
        differences = []
        for mine, whole in zip(found, exact, strict=True):
            theirs = whole[:, :, at].float()
            off = float((mine.float() - theirs).norm() / theirs.norm())
            differences.append(math.inf if math.isnan(off) else off)
        return slowest(max(differences))

    def _peak(self, step: Step) -> float:
        """Bytes that a step takes besides its inputs, PyTorch's and others', on the worst rank."""
        step()
        torch.cuda.synchronize()
        before, others = torch.cuda.memory_allocated(), not_of_torch()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return slowest(
            float(torch.cuda.max_memory_allocated() - before + not_of_torch() - others)
        )


def _one_gpu(problem: Problem, operands: list[torch.Tensor]) -> Step:
    """The whole attention and its gradients on one GPU alone."""
    q, k, v, dy = operands
    total = problem.ranks * problem.chunk
    stream = stream_of(q.device)
    desc = bk.FlashSdpaDescriptor(
        1, problem.heads, total, total, problem.head_dim, is_causal=problem.causal,
        element=bk.ElementKind.BF16, num_kv_heads=problem.kv_heads,
    )  # fmt: skip
    plan = bk.FlashSdpaPlan.select(desc, stream)
    backward = bk.FlashSdpaBackwardPlan.select(desc, stream)
    y, lse = torch.empty_like(q), torch.empty(q.shape[:3], device=q.device)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    scratch = torch.empty(backward.scratch_bytes, dtype=torch.uint8, device=q.device)
    args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse)
    of_gradients = bk.FlashSdpaBackwardArgs(
        q=q, k=k, v=v, y=y, dy=dy, lse=lse, dq=dq, dk=dk, dv=dv, scratch=scratch
    )

    def step() -> tuple[torch.Tensor, ...]:
        plan.run(stream_of(q.device), args)
        backward.run(stream_of(q.device), of_gradients)
        return dq, dk, dv

    return step


def _ring_flash_attention(problem: Problem, operands: list[torch.Tensor]) -> Contender | None:
    """ring-flash-attention's, zigzag when causal; None where it is not installed."""
    try:
        from ring_flash_attn.ring_flash_attn import ring_flash_attn_func
        from ring_flash_attn.zigzag_ring_flash_attn import zigzag_ring_flash_attn_func
    except ImportError:
        return None
    attention = zigzag_ring_flash_attn_func if problem.causal else ring_flash_attn_func
    # It takes [B, S, H, D].
    inputs = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in operands[:3]]
    dy = operands[3].transpose(1, 2).contiguous()

    def step() -> tuple[torch.Tensor, ...]:
        y = attention(*inputs, causal=problem.causal)
        return tuple(x.transpose(1, 2) for x in torch.autograd.grad(y, inputs, dy))

    return Contender(step, torch.arange(0))
