"""PyTorch's `context_parallel`, in each of the forms that it has.

Its context patches `scaled_dot_product_attention` for the whole process, so a contender's calls
are good inside its `around()` alone, and no other contender's are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.across_gpus.problem import Problem
from benchmarks.across_gpus.ranks import Contender

BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FA2": SDPBackend.FLASH_ATTENTION}


class Form(NamedTuple):
    """Which kernel, how K and V get around, and with how many of their heads."""

    backend: str
    rotation: str
    heads: str

    def __str__(self) -> str:
        return f"{self.backend}, {self.rotation}, {self.heads}"


# "repeated": K and V with the heads of Q, for kernels that do not take fewer, or are faster so.
FORMS = [Form(*form) for form in product(BACKENDS, ("allgather", "alltoall"), ("GQA", "repeated"))]


def context_parallel(
    problem: Problem, rank: int, operands: Any, mesh: Any, form: Form
) -> Contender:
    """One form of it, on this rank's share of q, k and v, balanced when causal.

    With dy as a fourth operand a call is a step that gives dq, dk and dv.
    """
    rows = problem.positions(rank, problem.balanced)
    q, k, v, *dy = (x[:, :, rows.to(x.device)] for x in operands)

    def repeated() -> tuple[torch.Tensor, torch.Tensor]:
        if form.heads == "GQA":
            return k, v
        group = problem.heads // problem.kv_heads
        return k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)

    if dy:
        for x in (q, k, v):
            x.requires_grad_()
    else:
        k, v = repeated()
        # It merges by lse, which cuDNN's forward leaves out where no gradient is asked for.
        q.requires_grad_(form.backend == "cuDNN")

    def call() -> Any:
        keys, values = repeated() if dy else (k, v)
        with sdpa_kernel(BACKENDS[form.backend]):
            y = torch.nn.functional.scaled_dot_product_attention(
                q, keys, values, is_causal=problem.causal, enable_gqa=form.heads == "GQA"
            )
            return torch.autograd.grad(y, (q, k, v), dy) if dy else [y.detach()]

    return Contender(call, rows, lambda: _patched(problem, mesh, form.rotation))


@contextlib.contextmanager
def _patched(problem: Problem, mesh: Any, rotation: str) -> Iterator[None]:
    from torch.distributed.tensor.experimental import _attention

    options = _attention._cp_options
    before = options.enable_load_balance, options.rotate_method
    options.enable_load_balance = problem.causal  # it refuses to balance what is not causal
    _attention.set_rotate_method(rotation)
    # It wants a buffer to shard; the shards of q, k and v are cut already.
    marker = torch.empty(1, problem.ranks * problem.chunk, device=mesh.device_type)
    patch = _attention.context_parallel(
        mesh, buffers=[marker], buffer_seq_dims=[1], no_restore_buffers={marker}
    )
    patch.__enter__()
    try:
        yield
    finally:
        patch.__exit__(None, None, None)  # told of an error, it would leave the patch behind
        options.enable_load_balance, options.rotate_method = before
