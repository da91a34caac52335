"""`ring_tax_backward` rows: what carrying dQ over the steps of a ring's backward pass costs.

One rank's P steps, each with dk and dv of its own in float32, beside one backward call over all P
chunks of keys; no mask, nothing exchanged. Replayed as CUDA graphs.
"""

from __future__ import annotations

from typing import Any

import torch

import baracuda_kernels as bk
from baracuda_kernels.testing import preference, torch_qkv
from benchmarks.peers import available
from benchmarks.rows import Row, row
from benchmarks.timing import beside_one_call, captured, input_sets

RANKS = 8
# (family, dtype, head_dim, heads, kv_heads, chunk)
PROBLEMS = [
    ("sm90a", "bf16", 128, 32, 8, 4096),
    ("sm90a", "bf16", 128, 32, 8, 8192),
    ("sm90a", "bf16", 128, 16, 16, 4096),
    ("sm90a", "bf16", 64, 32, 32, 4096),
]


def rows() -> list[Row]:
    """All `ring_tax_backward` rows."""
    return [_row(*problem) for problem in available(PROBLEMS)]


def _row(
    family: str, dtype: str, head_dim: int, heads: int, kv_heads: int, chunk: int
) -> Row:
    stream = bk.Stream(torch.cuda.current_stream())
    pref = preference(family, dtype)
    shape = {"element": bk.ElementKind.parse(dtype), "num_kv_heads": kv_heads}
    desc = bk.RingAttentionDescriptor(1, heads, chunk, chunk, head_dim, **shape)
    plan = bk.RingAttentionBackwardPlan.select(desc, stream, pref)
    whole = bk.FlashSdpaDescriptor(1, heads, chunk, RANKS * chunk, head_dim, **shape)
    forward = bk.FlashSdpaPlan.select(whole, stream, pref)
    one_call = bk.FlashSdpaBackwardPlan.select(whole, stream, pref)

    def make(seed: int) -> dict[str, Any]:
        q, k, v = torch_qkv(
            "normal", dtype, seed, heads=heads, kv_heads=kv_heads, query_len=chunk,
            key_len=RANKS * chunk, head_dim=head_dim,
        )  # fmt: skip
        dy = torch.randn_like(q)
        y, dq = torch.empty_like(q), torch.empty_like(q)
        lse = torch.empty(q.shape[:3], device="cuda")
        forward.run(stream, bk.FlashSdpaArgs(q=q, k=k, v=v, y=y, lse=lse))
        scratch, of_steps = (
            torch.empty(p.scratch_bytes, dtype=torch.uint8, device="cuda") for p in (one_call, plan)
        )
        args = bk.FlashSdpaBackwardArgs(
            q=q, k=k, v=v, y=y, dy=dy, lse=lse, dq=dq, dk=torch.empty_like(k),
            dv=torch.empty_like(v), scratch=scratch,
        )  # fmt: skip
        # Chunks as ranks have them, dense; dk and dv as they travel.
        chunks = [[x.contiguous() for x in pair] for pair in zip(
            k.chunk(RANKS, 2), v.chunk(RANKS, 2), strict=True)]  # fmt: skip
        shares = [torch.empty_like(x, dtype=torch.float32) for x in chunks[0]]

        def steps() -> None:
            for number, (keys, values) in enumerate(chunks):
                plan.step(
                    torch.cuda.current_stream(), q=q, k=keys, v=values, y=y, dy=dy, lse=lse, dq=dq,
                    dk=shares[0], dv=shares[1], scratch=of_steps, origin=number,
                    world_size=RANKS, first=number == 0, last=number == RANKS - 1,
                )  # fmt: skip

        calls = {
            "ours": steps,
            "one_call": lambda: one_call.run(torch.cuda.current_stream(), args),
        }
        return {name: captured(call) for name, call in calls.items()}

    params = {
        "family": family, "dtype": dtype, "head_dim": head_dim, "heads": heads,
        "kv_heads": kv_heads, "chunk": chunk, "ranks": RANKS,
    }  # fmt: skip
    return row("ring_tax_backward", params, **beside_one_call(input_sets(make, 256 << 20)))
