"""`ring_tax` rows: what carrying the state over the steps of a ring costs.

Not causal: one rank's P steps beside one call over all P chunks of keys. Causal: the live steps of
all P ranks (zigzag) beside one causal call over the whole sequence. Nothing is exchanged in either,
so the difference is the state's traffic, the extra launches and the smaller tiles. The one call is
the faster of ours and cuDNN's. All are replayed as CUDA graphs, as a training step would replay
them: `host_cost` has what the host adds.
"""

from __future__ import annotations

from typing import Any

import torch

import baracuda_kernels as bk
from baracuda_kernels.testing import preference, torch_qkv
from benchmarks.peers import available, peers_for
from benchmarks.rows import Row, row
from benchmarks.timing import beside_one_call, captured, input_sets
from tests.helpers.rings import shards_of

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


def rows() -> list[Row]:
    """All `ring_tax` rows, causal and not."""
    return [
        _row(*problem, causal)
        for problem in available(PROBLEMS)
        for causal in ((False, True) if problem[-1] < 8192 else (False,))
    ]


def _row(
    family: str, dtype: str, head_dim: int, heads: int, chunk: int, causal: bool
) -> Row:
    stream = bk.Stream(torch.cuda.current_stream())
    element = bk.ElementKind.parse(dtype)
    layout = bk.SequenceLayout.ZIGZAG if causal else bk.SequenceLayout.CONTIGUOUS
    pref = preference(family, dtype)
    desc = bk.RingAttentionDescriptor(
        1, heads, chunk, chunk, head_dim, None, causal, element, sequence_layout=layout
    )
    plan = bk.RingAttentionPlan.select(stream, desc, pref)
    queries = RANKS * chunk if causal else chunk
    whole = bk.FlashSdpaDescriptor(
        1, heads, queries, RANKS * chunk, head_dim, None, causal, element
    )
    one_call = bk.FlashSdpaPlan.select(stream, whole, pref)
    ranks = range(RANKS) if causal else range(1)
    state = torch.empty(plan.accumulator_scratch_bytes, dtype=torch.uint8, device="cuda")

    def make(seed: int) -> dict[str, Any]:
        q, k, v = torch_qkv(
            "normal", dtype, seed, heads=heads, query_len=RANKS * chunk, head_dim=head_dim
        )
        shards = shards_of(q, k, v, RANKS, layout.name.lower())
        outputs = [torch.empty_like(shards[r][0]) for r in ranks]
        y = torch.empty(1, heads, queries, head_dim, dtype=q.dtype, device="cuda")
        q_whole = q if causal else shards[0][0]
        args = bk.FlashSdpaArgs(q=q_whole, k=k, v=v, y=y)
        calls = {
            "ours": lambda: steps(shards, outputs),
            "one_call": lambda: one_call.run(torch.cuda.current_stream(), args),
        }
        cudnn = peers_for(q_whole, k, v, causal).get("cudnn")
        if cudnn is not None:
            calls["cudnn"] = lambda: cudnn(q_whole, k, v)
        return {name: captured(call) for name, call in calls.items()}

    def steps(shards: list, outputs: list) -> None:
        for r in ranks:
            for number in range(RANKS):
                origin = (r - number) % RANKS
                plan.step(
                    torch.cuda.current_stream(), q=shards[r][0], k=shards[origin][1],
                    v=shards[origin][2], y=outputs[r], accumulator_scratch=state, rank=r,
                    origin=origin, world_size=RANKS, first=number == 0, last=number == RANKS - 1,
                    follows=number > 0,
                )  # fmt: skip

    sets = input_sets(make, 4 * heads * RANKS * chunk * head_dim * element.itemsize)
    params = {"family": family, "dtype": dtype, "head_dim": head_dim, "heads": heads,
              "chunk": chunk, "ranks": RANKS, "causal": causal}  # fmt: skip
    return row("ring_tax", params, **beside_one_call(sets))
