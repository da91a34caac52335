"""`ring_tax` and `ring_tax_backward` rows: what carrying the state over a ring's steps costs.

Not causal: one rank's P steps beside one call over all P chunks of keys. Causal: the live steps of
all P ranks (zigzag) beside one causal call over the whole sequence. Nothing is exchanged in either,
so the difference is the state's traffic, the extra launches and the smaller tiles. The one call is
the faster of ours and cuDNN's; of gradients, which are not causal, it is ours, and each step has dk
and dv of its own in float32. All are replayed as CUDA graphs, as a training step would replay them:
`host_cost` has what the host adds.
"""

from __future__ import annotations

from typing import Any

import torch

import baracuda_kernels as bk
from baracuda_kernels.testing import preference
from benchmarks.calls import Call, Ring, scratch
from benchmarks.peers import available, peers_for
from benchmarks.rows import Row, row
from benchmarks.timing import beside_one_call, captured, input_sets, stream

RANKS = 8
# (family, dtype, head_dim, heads, chunk)
PROBLEMS = [
    *[("sm90a", "bf16", 128, 16, chunk) for chunk in (1024, 2048, 4096, 8192)],
    ("sm90a", "bf16", 64, 32, 2048),
    ("sm90a", "bf16", 256, 8, 2048),
    ("sm80", "bf16", 64, 32, 1024),
    ("sm80", "bf16", 128, 16, 1024),
    ("sm80", "bf16", 128, 16, 4096),
    ("sm80", "f16", 128, 16, 1024),
    ("sm80", "bf16", 256, 8, 1024),
    ("simt", "f32", 128, 8, 512),
]
# (family, dtype, head_dim, heads, kv_heads, chunk)
BACKWARD = [
    ("sm90a", "bf16", 128, 32, 8, 4096),
    ("sm90a", "bf16", 128, 32, 8, 8192),
    ("sm90a", "bf16", 128, 16, 16, 4096),
    ("sm90a", "bf16", 64, 32, 32, 4096),
]


def rows() -> list[Row]:
    """All `ring_tax` rows, causal and not, and all `ring_tax_backward` rows."""
    found = [
        _row(*problem, causal)
        for problem in available(PROBLEMS)
        for causal in ((False, True) if problem[-1] < 8192 else (False,))
    ]
    return found + [_backward_row(*problem) for problem in available(BACKWARD)]


def _row(family: str, dtype: str, head_dim: int, heads: int, chunk: int, causal: bool) -> Row:
    queries = RANKS * chunk if causal else chunk
    whole = Call(family, dtype, head_dim, 1, heads, heads, queries, causal, RANKS * chunk)
    one_call = whole.plan()
    ranks = range(RANKS) if causal else range(1)
    state: list[torch.Tensor] = []  # one for all, as steps follow one another

    def make(seed: int) -> dict[str, Any]:
        ring = Ring(family, RANKS, chunk, seed=seed, dtype=dtype, heads=heads, head_dim=head_dim,
                    layout="zigzag" if causal else "contiguous", causal=causal)  # fmt: skip
        state[:] = state or [scratch(ring.plan.accumulator_scratch_bytes)]
        outputs = [torch.empty_like(ring.shards[r][0]) for r in ranks]
        q, k, v = ring.qkv if causal else (ring.shards[0][0], *ring.qkv[1:])
        args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=torch.empty_like(q))

        def steps() -> None:
            for rank in ranks:
                for number in range(RANKS):
                    ring.step(rank, number, outputs[rank], state[0])

        calls = {"ours": steps, "one_call": lambda: one_call.run(torch.cuda.current_stream(), args)}
        cudnn = peers_for(q, k, v, causal).get("cudnn")
        if cudnn is not None:
            calls["cudnn"] = lambda: cudnn(q, k, v)
        return {name: captured(call) for name, call in calls.items()}

    itemsize = bk.ElementKind.parse(dtype).itemsize
    sets = input_sets(make, 4 * heads * RANKS * chunk * head_dim * itemsize)
    params = {"family": family, "dtype": dtype, "head_dim": head_dim, "heads": heads,
              "chunk": chunk, "ranks": RANKS, "causal": causal}  # fmt: skip
    return row("ring_tax", params, **beside_one_call(sets))


def _backward_row(
    family: str, dtype: str, head_dim: int, heads: int, kv_heads: int, chunk: int
) -> Row:
    desc = bk.RingAttentionDescriptor(
        1, heads, chunk, chunk, head_dim, element=bk.ElementKind.parse(dtype), num_kv_heads=kv_heads
    )
    plan = bk.RingAttentionBackwardPlan.select(desc, stream(), preference(family, dtype))
    whole = Call(family, dtype, head_dim, 1, heads, kv_heads, chunk, key_len=RANKS * chunk)
    one_call = whole.backward_plan()

    def make(seed: int) -> dict[str, Any]:
        saved = whole.saved(seed)
        k, v, dq = saved["k"], saved["v"], torch.empty_like(saved["q"])
        args = bk.FlashSdpaBackwardArgs(
            **saved, dq=dq, dk=torch.empty_like(k), dv=torch.empty_like(v),
            scratch=scratch(one_call.scratch_bytes),
        )  # fmt: skip
        # Chunks as ranks have them, dense; dk and dv as they travel.
        chunks = [
            {"k": k_part.contiguous(), "v": v_part.contiguous()}
            for k_part, v_part in zip(k.chunk(RANKS, 2), v.chunk(RANKS, 2), strict=True)
        ]
        shares = {f"d{n}": torch.empty_like(x, dtype=torch.float32) for n, x in chunks[0].items()}
        of_steps = scratch(plan.scratch_bytes)

        def steps() -> None:
            for number, keys in enumerate(chunks):
                plan.step(
                    torch.cuda.current_stream(), **{**saved, **keys}, dq=dq, **shares,
                    scratch=of_steps, origin=number, world_size=RANKS, first=number == 0,
                    last=number == RANKS - 1,
                )  # fmt: skip

        calls = {"ours": steps, "one_call": lambda: one_call.run(torch.cuda.current_stream(), args)}
        return {name: captured(call) for name, call in calls.items()}

    params = {
        "family": family, "dtype": dtype, "head_dim": head_dim, "heads": heads,
        "kv_heads": kv_heads, "chunk": chunk, "ranks": RANKS,
    }  # fmt: skip
    return row("ring_tax_backward", params, **beside_one_call(input_sets(make, 256 << 20)))
