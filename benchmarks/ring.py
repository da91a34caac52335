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
# Of one rank.
PROBLEMS = [
    *[Call("sm90a", chunk) for chunk in (1024, 2048, 4096, 8192)],
    Call("sm90a", 2048, "bf16", 64, 32),
    Call("sm90a", 2048, "bf16", 256, 8),
    Call("sm80", 1024, "bf16", 64, 32),
    Call("sm80", 1024),
    Call("sm80", 4096),
    Call("sm80", 1024, "f16"),
    Call("sm80", 1024, "bf16", 256, 8),
    Call("simt", 512, "f32", 128, 8),
]
BACKWARD = [
    Call("sm90a", 4096, heads=32, kv_heads=8),
    Call("sm90a", 8192, heads=32, kv_heads=8),
    Call("sm90a", 4096),
    Call("sm90a", 4096, "bf16", 64, 32),
]


def rows() -> list[Row]:
    """All `ring_tax` rows, causal and not, and all `ring_tax_backward` rows."""
    found = [
        _row(x._replace(causal=causal))
        for x in available(PROBLEMS)
        for causal in ((False, True) if x.query_len < 8192 else (False,))
    ]
    return found + [_backward_row(x) for x in available(BACKWARD)]


def _row(x: Call) -> Row:
    total, ranks = RANKS * x.query_len, range(RANKS) if x.causal else range(1)
    one_call = x._replace(query_len=total if x.causal else x.query_len, key_len=total).plan()
    state: list[torch.Tensor] = []  # one for all, as steps follow one another

    def make(seed: int) -> dict[str, Any]:
        ring = Ring(x, RANKS, layout="zigzag" if x.causal else "contiguous", seed=seed)
        state[:] = state or [scratch(ring.plan.accumulator_scratch_bytes)]
        outputs = [torch.empty_like(ring.shards[r][0]) for r in ranks]
        q, k, v = ring.qkv if x.causal else (ring.shards[0][0], *ring.qkv[1:])
        args = bk.FlashSdpaArgs(q=q, k=k, v=v, y=torch.empty_like(q))

        def steps() -> None:
            for rank in ranks:
                for number in range(RANKS):
                    ring.step(rank, number, outputs[rank], state[0])

        calls = {"ours": steps, "one_call": lambda: one_call.run(torch.cuda.current_stream(), args)}
        cudnn = peers_for(q, k, v, x.causal).get("cudnn")
        if cudnn is not None:
            calls["cudnn"] = lambda: cudnn(q, k, v)
        return {name: captured(call) for name, call in calls.items()}

    sets = input_sets(make, RANKS * x.nbytes(2))
    return row("ring_tax", _params(x, "heads", "causal"), **beside_one_call(sets))


def _backward_row(x: Call) -> Row:
    desc = x.descriptor(bk.RingAttentionDescriptor)
    plan = bk.RingAttentionBackwardPlan.select(desc, stream(), preference(x.family, x.dtype))
    whole = x._replace(key_len=RANKS * x.query_len)
    one_call = whole.backward_plan()

    def make(seed: int) -> dict[str, Any]:
        saved = whole.saved(seed)
        dq, dk, dv = (torch.empty_like(saved[name]) for name in "qkv")
        args = bk.FlashSdpaBackwardArgs(
            **saved, dq=dq, dk=dk, dv=dv, scratch=scratch(one_call.scratch_bytes)
        )
        # Chunks as ranks have them, dense; dk and dv as they travel.
        chunks = [
            {"k": k.contiguous(), "v": v.contiguous()}
            for k, v in zip(*(saved[name].chunk(RANKS, 2) for name in "kv"), strict=True)
        ]
        of_step = {
            f"d{n}": torch.empty_like(part, dtype=torch.float32) for n, part in chunks[0].items()
        }
        of_step |= {"dq": dq, "scratch": scratch(plan.scratch_bytes)}

        def steps() -> None:
            for number, keys in enumerate(chunks):
                given: dict[str, Any] = {**saved, **keys, **of_step}
                plan.step(
                    torch.cuda.current_stream(), **given, origin=number, world_size=RANKS,
                    first=number == 0, last=number == RANKS - 1,
                )  # fmt: skip

        calls = {"ours": steps, "one_call": lambda: one_call.run(torch.cuda.current_stream(), args)}
        return {name: captured(call) for name, call in calls.items()}

    params = _params(x, "heads", "kv_heads")
    return row("ring_tax_backward", params, **beside_one_call(input_sets(make, 256 << 20)))


def _params(x: Call, *more: str) -> dict[str, Any]:
    of_call = {name: x.params()[name] for name in ("family", "dtype", "head_dim", *more)}
    return {**of_call, "chunk": x.query_len, "ranks": RANKS}
