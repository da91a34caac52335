"""The sections of docs/performance.md, a table for each kind of row: one card's, across GPUs."""

from __future__ import annotations

import functools
import statistics

from benchmarks import on_paper
from benchmarks.rows import Result, Row
from benchmarks.tables import Cell, Group, Section, by, by_way, ring_flops, tflops


def _kept(row: Row) -> float:
    """Milliseconds, sustained where there are such."""
    return row.get("sustained", row)["ours"]


def _each(name: str) -> Cell:
    """A figure of every row."""
    return lambda group: " / ".join(f"{row['peers'].get(name, row['ours']):.3f}" for row in group)


def _form(group: Group) -> str:
    return str(group[0]["params"]["context_parallel"]).replace(", ", "/")


def _rate(group: Group) -> str:
    """TFLOPS of each GPU."""
    p = group[0]["params"]
    return f"{ring_flops(p) / p['ranks'] / group[0]['ours'] / 1e9:.1f}"


def _peers(group: Group) -> str:
    return ", ".join(f"{name} {x:.1f}" for name, x in group[0]["peers"].items()) or "–"


def _beside_two_ranks(rows: Group) -> list[Group]:
    """Each row, and that of the same ring of two under its peers."""
    of_two = (row for row in rows if row["params"]["ranks"] == 2)
    peers = {row["params"]["chunk"]: {"two": row["ours"]} for row in of_two}
    return [[row | {"peers": peers.get(row["params"]["chunk"], {})}] for row in rows]


_CALL = "family, dtype, D=head_dim, B=batch, H/Hkv=heads/kv_heads, S=query_len, causal, "
_SPEED = "ms, TFLOPS, vs fa2=~fa2:ours .2f, vs cuDNN=~cudnn:ours .2f, vs fa3=~fa3:ours .2f"
_SPEED_CELLS: dict[str, Cell] = {
    "ms": lambda group: f"{_kept(group[0]):.3f}",
    "TFLOPS": lambda group: f"{tflops(group[0], _kept(group[0])):.1f}",
}
_STEPS = "steps ms=ours .3f, one call ms=one_call .3f, steps / one call=ours:one_call"
_RING = "P=ranks, H/Hkv=heads/kv_heads, rows=chunk, layout, causal, "
_OWN = "vs all-gather + our kernel=all_gather_own:ours .2f, vs Ulysses + our kernel=ulysses:ours .2f, "
# A line for dq, dk and dv together.
_GRADIENT_ERROR = Section(
    "Error of gradients",
    "rms error against float64, 2048 rows on each rank, and over one rank's on the same sequence.",
    "family, P=ranks, layout, causal, by=exchange, GPUs=devices, dq=ours .3e, dk=ours@1 .3e, "
    "dv=ours@2 .3e, dq / one rank=ours:one_rank .3f, dk / one rank=ours:one_rank@1 .3f, "
    "dv / one rank=ours:one_rank@2 .3f",
    by("family", "ranks", "layout", "causal", "exchange", "devices"),
)
_FAULTS = Section(
    "A rank that fails, a GPU each",
    "Seconds from the fault of one rank process until the last of the others had its typed error, "
    "the worst of all rings.",
    "fault=case, P=ranks, rings, worst s=ours .2f, deadline s=timeout .1f",
)
# One card's, as they stand on the page.
ALONE = {
    "forward": Section("One attention call", "", _CALL + _SPEED, cells=_SPEED_CELLS),
    "backward": Section(
        "Gradients of one attention call",
        "The whole backward pass; TFLOPS count 2.5 times the forward pass's operations. *vs fast*: "
        "the deterministic kernel beside the fast one.",
        f"{_CALL}guarantee, {_SPEED}, vs fast=~fast:ours .2f", cells=_SPEED_CELLS,
    ),
    "ring_tax": Section(
        "The steps of a ring beside one call", "",
        f"family, dtype, D=head_dim, H=heads, chunk, P=ranks, causal, {_STEPS} .2f",
    ),
    "ring_tax_backward": Section(
        "The backward steps of a ring beside one call", "",
        f"family, dtype, D=head_dim, H/Hkv=heads/kv_heads, chunk, P=ranks, {_STEPS} .3f",
    ),
    "balance": Section(
        "Balance of a causal ring",
        "Every rank's every step timed alone. *Slowest rank*: the sum over steps of the slowest "
        "rank, over all steps of all ranks divided by P; 1 is perfect. *Summed work*: all steps of "
        "all ranks over one causal call on the whole sequence, each as in continuous use; the power "
        "limit moves it by 1 to 2 % between runs.",
        "family, layout, P=ranks, chunk, what, ratio=ours .3f, contiguous=contiguous .3f",
    ),
    "overlap": Section(
        "Overlap",
        "A run beside its kernels alone and its exchanges alone. *local*: all ranks on one card. "
        "*nccl_self*: one NCCL rank that sends to itself for P steps. *sockets*: two processes that "
        "share the card, over NCCL's sockets.",
        "family, transport, max_ctas, P=ranks, chunk, run ms=ours .3f, compute ms=compute .3f, "
        "exchange ms=exchange .3f, / the longer",
        cells={"/ the longer": lambda g: f"{g[0]['ours'] / max(g[0]['peers'].values()):.3f}"},
    ),
    "graph": Section(
        "A local ring as one CUDA graph", "Beside a graph of its kernels alone.",
        "family, P=ranks, chunk, ring ms=ours .3f, kernels ms=kernels .3f, ratio=ours:kernels .3f",
    ),
    "faults": _FAULTS._replace(
        title="A rank that fails",
        text=f"{_FAULTS.text} A rank with another head_dim is found by `plan.validate` before the "
        "first run.",
    ),
    "error": Section(
        "Error against float64", "",
        "family, dtype, of=what, P=ranks, inputs=distribution, rms error=ours .3e, "
        "/ rounding=ours:rounding .3f, / cuDNN=ours:cudnn .3f",
    ),
    "gradient_error": _GRADIENT_ERROR._replace(title="Error of a ring's gradients"),
    "host_cost": Section(
        "Host time of a call", "", "call=what, P=ranks, µs=ours .1f, peers µs",
        cells={"peers µs": _peers},
    ),
    "memory": Section(
        "Memory of a training step",
        "Peak of a step on a rank besides its inputs, on local rings; bf16, 32 / 8 heads, D 128, "
        "causal, zigzag.",
        "rows=chunk, P=ranks, MB=ours .0f 1e6, over P = 2=ours:two .3f", _beside_two_ranks,
    ),
}  # fmt: skip
# Several GPUs', as they stand on the page.
_of_rings = functools.partial(Section, groups=by_way)
ACROSS = {
    "scaling": _of_rings(
        "Speed", "",
        f"{_RING}by=exchange, SMs=max_ctas, ms=ours .3f, TFLOPS per GPU, % of ideal=%ideal .1f, "
        "as a graph=%ideal@1 .1f, over its steps=ours:steps .2f, "
        "vs context_parallel=context_parallel:ours .2f, vs all-gather=all_gather:ours .2f, "
        f"{_OWN}form of context_parallel",
        cells={"TFLOPS per GPU": _rate, "form of context_parallel": _form},
    ),
    "exchange": _of_rings(
        "The exchange by itself",
        "GB/s each way of a ring's first hop, from the grant to the arrival on the rank that came "
        "last: beside the ring's steps, and for so few queries that nothing is beside it. *Late*: of "
        "the rank that waited longest, beside steps.",
        f"{_RING}by=exchange, SMs=max_ctas, MB, beside steps=ours .0f, alone=alone .0f, late=late .0f",
        cells={"MB": lambda group: f"{group[0]['params']['bytes'] / 1e6:.1f}"},
    ),
    "scaling_step": _of_rings(
        "Exposed communication",
        "Milliseconds of each step, the worst rank's, medians of seven runs. *Exposed*: what a "
        "step's kernel waited for the exchange before it, other ranks' lateness included.",
        f"{_RING}by=exchange, exposed, compute, exchange",
        cells={name: _each(name) for name in ("exposed", "compute", "exchange")},
    ),
    "scaling_memory": _of_rings(
        "Memory",
        "Peak MiB of a rank's tensors over a run: q, k, v, y, two receive buffers, the state. "
        "*Other*: what all else on the GPU grew by from before the run to after it; the first run "
        "connects the ranks and loads the kernel.",
        f"{_RING}MiB=ours .1f 1048576, MiB at P = 1=one_rank .1f 1048576, other=other .1f 1048576",
    ),
    "scaling_error": _of_rings(
        "Answers", "Relative error of sampled rows against float64, the worst rank's.",
        f"{_RING}ring=ours .3e, one GPU=one_gpu .3e, context_parallel=context_parallel .3e, "
        "all-gather=all_gather .3e, ring / one GPU=ours:one_gpu .3f",
    ),
    "gradient_error": _GRADIENT_ERROR,
    "training": _of_rings(
        "Training",
        "Forward and backward of one layer through `interop.torch`; *ideal*: both on one GPU for the "
        "whole sequence, divided by P. ring-flash-attention 0.1.8 runs on PyTorch's FlashAttention-2 "
        "kernels.",
        f"{_RING}step ms=ours .3f, forward ms=ours@1 .3f, backward ms=ours@2 .3f, "
        "% of ideal=%ideal .1f, as a graph=%ideal@3 .1f, "
        "vs context_parallel=context_parallel:ours .2f, "
        f"vs ring-flash-attention=ring_flash_attention:ours .2f, {_OWN}form of context_parallel",
        cells={"form of context_parallel": _form},
    ),
    "training, jax": _of_rings(
        "Training by JAX",
        "Forward and backward of one layer by `interop.jax` in `shard_map`; XLA moves the chunks. "
        "*Ideal*: both on one GPU for the whole sequence, divided by P, by our kernels and by XLA's "
        "cuDNN attention.",
        f"{_RING}step ms=ours .3f, % of ideal=%ideal .1f, % of cuDNN's ideal=%cudnn_ideal .1f",
    ),
    "memory": _of_rings(
        "", "Peak of a step besides its inputs, of the worst rank, receive buffers included.",
        f"{_RING}ours MB=ours .0f 1e6, context_parallel MB=context_parallel .0f 1e6, "
        "ring-flash-attention MB=ring_flash_attention .0f 1e6",
    ),
    "faults": _FAULTS,
}  # fmt: skip


def scale_on_paper(result: Result) -> str:
    """The paper model beside what was measured; empty where nothing can be compared."""
    compared = on_paper.comparisons(result)
    if not compared:
        return ""
    ratios = [round(row["ours"] / row["peers"]["on_paper"], 3) for row in compared]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Section(
        "Scale on paper beside these runs",
        "What `baracuda-kernels predict --measured` makes of the single calls above, and of the "
        "state's cost in rings without a mask, for the other rings above; nothing is exchanged in "
        "them. *ms*: all steps of all ranks. The middle half of the ratios lies between "
        f"{low:.2f} and {high:.2f}.",
        "family, dtype, D=head_dim, layout, P=ranks, chunk, what, measured=ours .3f, "
        "on paper=on_paper .3f, measured / on paper=ours:on_paper .3f",
    ).of(compared)
