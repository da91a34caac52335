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

from benchmarks.across_gpus.contenders import Contender, balanced_layout
from benchmarks.across_gpus.problem import Problem, Whole

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


def context_parallel(problem: Problem, rank: int, whole: Whole, mesh: Any, form: Form) -> Contender:
    """One form of it, on this rank's share, balanced when causal."""
    rows = problem.positions(rank, balanced_layout(problem))
    at = rows.to(whole.q.device)
    q, k, v = (x[:, :, at] for x in whole)
    if form.heads == "repeated":
        group = problem.heads // problem.kv_heads
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    # It merges by lse, which cuDNN's forward leaves out where no gradient is asked for.
    q.requires_grad_(form.backend == "cuDNN")

    def call() -> list[torch.Tensor]:
        with sdpa_kernel(BACKENDS[form.backend]):
            y = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=problem.causal, enable_gqa=form.heads == "GQA"
            )
        return [y.detach()]

    return Contender(call, rows, lambda: patched(problem, mesh, form.rotation))


@contextlib.contextmanager
def patched(problem: Problem, mesh: Any, rotation: str) -> Iterator[None]:
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
