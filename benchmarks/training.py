"""Training across the GPUs of one host: forward and backward of one attention layer by PyTorch.

    torchrun --standalone --nproc-per-node=2 -m benchmarks.training --out benchmarks/results

One process per GPU. Times `interop.torch.ring_attention` with its gradients, eager and as a CUDA
graph, in interleaved rounds beside PyTorch's `context_parallel` in the fastest of its forms,
ring-flash-attention where it is installed, our kernel by all-gather and by all-to-all (Ulysses), and
the same work on one GPU (over the ranks: the ideal). Holds every rank's gradients to those of one
GPU, and takes the peak of memory.
Writes DIR/training-<ranks>x-<card>.json, anew after each problem. Exit code 1 if a gradient is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from baracuda_kernels.interop.torch import clear_cache, ring_attention
from baracuda_kernels.interop.torch._ring import ring_of
from benchmarks.across_gpus.contenders import one_gpu
from benchmarks.across_gpus.gathered import all_gather_own
from benchmarks.across_gpus.others import Others
from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.ranks import Contender, group, interleaved, parser, say, slowest
from benchmarks.across_gpus.ulysses import ulysses
from benchmarks.gradient_error import LAYOUTS, relative
from benchmarks.rounds import summary
from benchmarks.rows import Report, Row, row
from benchmarks.timing import captured, not_of_torch, peak_bytes

# Relative difference of a rank's gradients from those of one GPU: both round to bf16.
_TOLERANCE = 6e-3
# Others keep 16-bit partial gradients; beyond this it is another answer.
_PEER_TOLERANCE = 0.03

# dq, dk, dv of a rank's rows, [1, H, rows, D].
Step = Callable[[], Sequence[torch.Tensor]]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if a gradient is wrong."""
    made = parser("training", [4096, 8192, 16384, 32768])
    masks = ["causal", "full"]
    made.add_argument("--mask", nargs="+", choices=masks, default=masks)
    made.add_argument(
        "--layout", nargs="+", choices=LAYOUTS, help="default: causal zigzag, full contiguous"
    )
    options = made.parse_args(arguments)
    report = Report(options.out, "training-")
    with group() as (rank, ranks):
        measures = TrainingMeasures(init_device_mesh("cuda", (ranks,)))
        for chunk, heads, mask in product(options.chunk, options.heads, options.mask):
            causal = mask == "causal"
            for layout in options.layout or ["zigzag" if causal else "contiguous"]:
                problem = Problem(ranks, chunk, heads, options.kv_heads, 128, layout, causal)
                report.add(measures.rows(problem, options.rounds), ranks=ranks, rank=rank)
    return 1 if measures.failed else 0


class TrainingMeasures:
    """Measures steps on the ranks of the default group, all ranks alike."""

    def __init__(self, mesh: Any) -> None:
        self._others, self._rank = Others(mesh, _PEER_TOLERANCE), mesh.get_local_rank()
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._ranks = mesh.size()
        self.failed = False

    def rows(self, problem: Problem, rounds: int) -> list[Row]:
        """`training`: ms of a step, of its passes, and of the step as a CUDA graph; `memory`: peak
        bytes of a step."""
        self._begin_anew()
        whole, dy = problem.whole(self._device), problem.gathered("dy", self._device)
        one = one_gpu(problem, whole, dy)
        exact = one.call()
        ours, forward, backward = self._ours(problem)
        before = not_of_torch()
        off = self._off(problem.positions(self._rank), ours(), exact)
        if not off <= _TOLERANCE:
            say(f"WRONG: gradients differ by {off:.2e} from one GPU's: {problem}")
            self.failed = True
        # Receive buffers are the library's own, and stay.
        peak = _peak(ours, slowest(float(not_of_torch() - before)))
        found = {
            **_ring_flash_attention(problem, self._rank, [*whole, dy]),
            **ulysses(problem, self._rank, whole, dy),
            "all_gather_own": all_gather_own(problem, self._rank, whole, dy),
        }
        others = self._others.admitted(
            problem, found, [*whole, dy],
            lambda other, gradients: self._off(other.rows, gradients, exact, other.key_rows),
        )  # fmt: skip
        peaks = {}
        for name in sorted(others.keys() & {"context_parallel", "ring_flash_attention"}):
            with others[name].around():  # the rest keep their tensors from call to call
                peaks[name] = _peak(others[name].call)
        graph = captured(ours)
        calls = {"step": ours, "forward": forward, "backward": backward(), "graph": graph}
        contenders = {name: Contender(call) for name, call in calls.items()}
        rounds = problem.rounds(rounds)
        samples = interleaved({**contenders, "ideal": one, **others}, rounds=rounds)
        apart = {name: {name: samples.pop(name)} for name in ("forward", "backward", "graph")}
        apart["graph"]["ideal"] = samples["ideal"]
        ways = {hop.kind for hop in getattr(ring_of("", self._device).comm, "exchange", ())}
        exchange = "+".join(sorted(ways)) or "none"
        form = self._others.form(problem)
        rows = []
        for what, times in {"step": samples, **apart}.items():
            figures = summary(times, what)
            if "ideal" in times:
                figures["peers"]["ideal"] /= problem.ranks
            params = problem.params(
                exchange=exchange, rounds=rounds, context_parallel=form, what=what
            )
            rows.append(row("training", params, **figures))
        return [*rows, row("memory", problem.params(exchange=exchange), peak, peaks)]

    def _begin_anew(self) -> None:
        """Receive buffers are kept, and would be those of the problem before. What else is made
        once, communicators above all, is made before memory is looked at."""
        clear_cache()
        dist.barrier()
        self._ours(Problem(self._ranks, 64, 4, 4, 128, "zigzag", True))[0]()

    def _ours(
        self, problem: Problem
    ) -> tuple[Step, Callable[[], torch.Tensor], Callable[[], Step]]:
        """The step, its forward pass, and what makes its backward pass, which keeps a forward's."""
        q, k, v, dy = (problem.shard(x, self._rank, self._device) for x in ("q", "k", "v", "dy"))
        inputs = [x.requires_grad_() for x in (q, k, v)]

        def forward() -> torch.Tensor:
            return ring_attention(q, k, v, is_causal=problem.causal, sequence_layout=problem.layout)

        def backward() -> Step:
            y = forward()
            return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)

        return lambda: torch.autograd.grad(forward(), inputs, dy), forward, backward

    def _off(
        self, rows: torch.Tensor, found: Any, exact: Any, key_rows: torch.Tensor | None = None
    ) -> float:
        """The largest relative difference of these rows' gradients from one GPU's, on any rank."""
        keys = rows if key_rows is None else key_rows
        parts = zip(found, exact, (rows, keys, keys), strict=True)
        return slowest(max(relative(x, whole[:, :, at.to(x.device)]) for x, whole, at in parts))


def _peak(step: Step, kept: float = 0.0) -> float:
    """Bytes that a step takes besides its inputs, PyTorch's and others', on the worst rank."""
    step()
    return slowest(float(peak_bytes(step))) + kept


def _ring_flash_attention(problem: Problem, rank: int, operands: Any) -> dict[str, Contender]:
    """ring-flash-attention's, zigzag when causal; none where it is not installed."""
    try:
        from ring_flash_attn.ring_flash_attn import ring_flash_attn_func
        from ring_flash_attn.zigzag_ring_flash_attn import zigzag_ring_flash_attn_func
    except ImportError:
        return {}
    attention = zigzag_ring_flash_attn_func if problem.causal else ring_flash_attn_func
    rows = problem.positions(rank, problem.balanced)
    # It takes [B, S, H, D].
    *inputs, dy = (x.transpose(1, 2)[:, rows.to(x.device)].contiguous() for x in operands)
    for x in inputs:
        x.requires_grad_()

    def step() -> tuple[torch.Tensor, ...]:
        y = attention(*inputs, causal=problem.causal)
        return tuple(x.transpose(1, 2) for x in torch.autograd.grad(y, inputs, dy))

    return {"ring_flash_attention": Contender(step, rows)}


if __name__ == "__main__":
    sys.exit(main())
