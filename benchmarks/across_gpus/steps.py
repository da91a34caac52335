"""Rows of `benchmarks.training`: what a training step of one attention layer takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels.interop.torch import clear_cache, ring_attention
from baracuda_kernels.interop.torch._ring import ring_of
from benchmarks.across_gpus.contenders import Contender, balanced_layout, one_gpu
from benchmarks.across_gpus.others import Others
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.ranks import interleaved, say, slowest
from benchmarks.rounds import summary
from benchmarks.rows import Row, row
from benchmarks.timing import not_of_torch, peak_bytes

# Relative difference of a rank's gradients from those of one GPU: both round to bf16.
_TOLERANCE = 6e-3
# Others keep 16-bit partial gradients; beyond this it is another answer.
_PEER_TOLERANCE = 0.03

# dq, dk, dv of a rank's rows, [1, H, rows, D].
Step = Callable[[], Sequence[torch.Tensor]]


class TrainingMeasures:
    """Measures steps on the ranks of the default group, all ranks alike."""

    def __init__(self, mesh: Any) -> None:
        self._others, self._rank = Others(mesh, _PEER_TOLERANCE), mesh.get_local_rank()
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._ranks = mesh.size()
        self.failed = False

    def rows(self, problem: Problem, rounds: int) -> list[Row]:
        """`training`: ms of a step, and of its passes; `memory`: peak bytes of a step."""
        device = self._device
        self._begin_anew()
        whole = problem.whole(device)
        random = torch.Generator(device).manual_seed(99)
        dy = torch.randn(whole.q.shape, generator=random, device=device).to(whole.q.dtype)
        one = one_gpu(problem, whole, dy)
        exact = one.call()
        ours, forward, backward = self._ours(problem, [*whole, dy])
        before = not_of_torch()
        off = self._off(problem, problem.layout, ours(), exact)
        if not off <= _TOLERANCE:
            say(f"WRONG: gradients differ by {off:.2e} from one GPU's: {problem}")
            self.failed = True
        # Receive buffers are the library's own, and stay.
        kept = slowest(float(not_of_torch() - before))
        peak = self._peak(ours) + kept
        layout = balanced_layout(problem)
        other = _ring_flash_attention(problem, self._shards(problem, [*whole, dy], layout))
        others = self._others.admitted(
            problem, {} if other is None else {"ring_flash_attention": other}, [*whole, dy],
            lambda _, gradients: self._off(problem, layout, gradients, exact),
        )  # fmt: skip
        peaks = {}
        for name, one_of in others.items():
            with one_of.around():
                peaks[name] = self._peak(one_of.call)
        calls: dict[str, Callable[[], Any]] = {
            "step": ours, "forward": forward, "backward": backward(), "ideal": one.call,
            **{name: one_of.call for name, one_of in others.items()},
        }  # fmt: skip
        rounds = problem.rounds(rounds)
        around = {name: one_of.around for name, one_of in others.items()}
        samples = interleaved(calls, around, rounds=rounds)
        passes = {name: samples.pop(name) for name in ("forward", "backward")}
        ways = {hop.kind for hop in getattr(ring_of("", device).comm, "exchange", ())}
        exchange = {"exchange": "+".join(sorted(ways)) or "none"}
        form = self._others.forms[problem.chunk, problem.causal]
        params = {**problem.params(), **exchange, "rounds": rounds, "context_parallel": str(form)}
        step = summary(samples, "step")
        step["peers"]["ideal"] /= problem.ranks
        found = [row("training", {**params, "what": "step"}, **step)]
        for what, times in passes.items():
            found.append(row("training", {**params, "what": what}, **summary({what: times}, what)))
        return [*found, row("memory", {**problem.params(), **exchange}, peak, peaks)]

    def _begin_anew(self) -> None:
        """Receive buffers are kept, and would be those of the problem before. What else is made
        once, communicators above all, is made before memory is looked at."""
        clear_cache()
        dist.barrier()
        tiny = Problem(self._ranks, 64, 4, 4, 128, "zigzag", True)
        whole = tiny.whole(self._device)
        self._ours(tiny, [*whole, whole.q])[0]()

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

    def _off(self, problem: Problem, layout: str, found: Any, exact: Any) -> float:
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
        return slowest(float(peak_bytes(step)))


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
