"""The host family's gradients beside PyTorch's on the CPU: float32, one call, by turns.

    python -m benchmarks.host_gradients [--threads 2] [--rows 4096]

Needs no GPU. Each with so many threads; medians, and the median of the ratios within a round: above
1 ours is faster. Exit code 1 where it is not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import baracuda_kernels as bk
from baracuda_kernels._core import _info

_HEADS, _HEAD_DIM = 8, 128


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if PyTorch's is the faster one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_gradients")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    _info.set_host_threads(options.threads)
    slower = False
    for is_causal in (False, True):
        ours, theirs, ratio = compare(*calls(options.rows, is_causal), options.rounds)
        mask = "causal" if is_causal else "full"
        print(
            f"f32 B 1 H {_HEADS} S {options.rows} D {_HEAD_DIM} {mask}, {options.threads} threads: "
            f"{ours:.3f} s, PyTorch {torch.__version__} {theirs:.3f} s: {ratio:.2f} times as fast"
        )
        slower |= ratio < 1
    return int(slower)


def calls(rows: int, is_causal: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Ours and PyTorch's backward of one attention call."""
    random = np.random.default_rng(0)
    shape = (1, _HEADS, rows, _HEAD_DIM)
    q, k, v, dy = (random.standard_normal(shape).astype(np.float32) for _ in range(4))
    stream = bk.Stream.host()
    desc = bk.FlashSdpaDescriptor(
        1, _HEADS, rows, rows, _HEAD_DIM, is_causal=is_causal, element="F32"
    )
    y, lse = np.empty_like(q), np.empty(shape[:3], np.float32)
    bk.FlashSdpaPlan.select(desc, stream).run(stream, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse))
    plan = bk.FlashSdpaBackwardPlan.select(desc, stream)
    dq, dk, dv = (np.empty_like(q) for _ in range(3))
    args = bk.FlashSdpaBackwardArgs(q=q, k=k, v=v, y=y, dy=dy, lse=lse, dq=dq, dk=dk, dv=dv,
                                    scratch=np.empty(plan.scratch_bytes, np.uint8))  # fmt: skip
    operands = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    attend = torch.nn.functional.scaled_dot_product_attention
    out, of_out = attend(*operands, is_causal=is_causal), torch.from_numpy(dy)
    return (
        lambda: plan.run(stream, args),
        lambda: torch.autograd.grad(out, operands, of_out, retain_graph=True),
    )


def compare(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int
) -> tuple[float, float, float]:
    """Seconds of each, medians, and the median of theirs over ours."""
    ours()
    theirs()
    samples: list[tuple[float, float]] = []
    for number in range(rounds):
        pair = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            begin = time.perf_counter()
            (ours, theirs)[which]()
            pair[which] = time.perf_counter() - begin
        samples.append((pair[0], pair[1]))
    mine, others = zip(*samples, strict=True)
    ratio = statistics.median(b / a for a, b in samples)
    return statistics.median(mine), statistics.median(others), ratio


if __name__ == "__main__":
    sys.exit(main())
