"""The sections of docs/performance.md, a table for each kind of row: one card's, and across GPUs."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import on_paper
from benchmarks.rows import Result, Row
from benchmarks.tables import (
    Cell,
    Group,
    Section,
    by,
    by_problem,
    by_way,
    exchange,
    figure,
    ours,
    over,
    params,
    peer,
    percent,
    ring_flops,
    table,
    tflops,
    times,
)

# --- cells


def _kept(row: Row) -> float:
    """Milliseconds, sustained where there are such."""
    return row.get("sustained", row)["ours"]


def _both(name: str) -> Cell:
    """How many times as long a peer takes, sustained before burst where there are both."""

    def cell(group: Group) -> str:
        kept: Any = group[0].get("sustained")
        burst: str = times(name)(group)
        return burst if kept is None else f"{times(name)([kept])} / {burst}"

    return cell


def _runs(spec: str, what: str) -> Cell:
    """The figure of the row that is of `what`."""
    return lambda group: ours(spec)([row for row in group if row["params"]["what"] == what])


def _each(spec: str, name: str = "ours", sep: str = " / ") -> Cell:
    """A figure of every row."""
    return lambda group: sep.join(
        f"{row['ours'] if name == 'ours' else row['peers'][name]:{spec}}" for row in group
    )


def _form(group: Group) -> str:
    return str(group[0]["params"]["context_parallel"]).replace(", ", "/")


def _rate(group: Group) -> str:
    """TFLOPS of each GPU."""
    p = group[0]["params"]
    return f"{ring_flops(p) / p['ranks'] / group[0]['ours'] / 1e9:.1f}"


def _hosts_peers(group: Group) -> str:
    return ", ".join(f"{name} {x:.1f}" for name, x in group[0]["peers"].items()) or "–"


def _beside_two_ranks(rows: Group) -> list[Group]:
    """Each row, and that of the same ring of two."""
    two = {row["params"]["chunk"]: row for row in rows if row["params"]["ranks"] == 2}
    return [[row, two.get(row["params"]["chunk"], row)] for row in rows]


_SHAPE = params("family, dtype, D=head_dim, B=batch, H/Hkv=heads/kv_heads, S=query_len, causal")
_SPEED = {
    "ms": lambda group: f"{_kept(group[0]):.3f}",
    "TFLOPS": lambda group: f"{tflops(group[0], _kept(group[0])):.1f}",
    "vs fa2": _both("fa2"), "vs cuDNN": _both("cudnn"), "vs fa3": _both("fa3"),
}  # fmt: skip
_STEPS = {"steps ms": ours(), "one call ms": peer("one_call")}
_RING = params("P=ranks, rows=chunk, layout, causal")
_WAY = {**_RING, "by": lambda group: exchange(group[0])}


def _gradient_error(title: str) -> Section:
    """A line for dq, dk and dv together."""
    of = list(enumerate(("dq", "dk", "dv")))
    return Section(
        title,
        "rms error against float64, 2048 rows on each rank, and over one rank's on the same sequence.",
        {
            **params("family, P=ranks, layout, causal, by=exchange"),
            "GPUs": lambda group: group[0]["params"].get("devices", 1),
            **{name: figure(".3e", lambda ours, _: ours, at) for at, name in of},
            **{f"{name} / one rank": figure(".3f", lambda ours, peers: ours / peers["one_rank"], at)
               for at, name in of},
        },
        by("family", "ranks", "layout", "causal", "exchange", "devices"),
    )  # fmt: skip


def _faults(title: str, more: str = "") -> Section:
    return Section(
        title,
        "Seconds from the fault of one rank process until the last of the others had its typed error, "
        f"the worst of all rings.{more}",
        {
            **params("fault=case, P=ranks, rings"), "worst s": ours(".2f"),
            "deadline s": peer("timeout", ".1f"),
        },
    )  # fmt: skip


# --- one card's, as they stand on the page

ALONE = {
    "forward": Section("One attention call", "", _SHAPE | _SPEED),
    "backward": Section(
        "Gradients of one attention call",
        "The whole backward pass; TFLOPS count 2.5 times the forward pass's operations. *vs fast*: "
        "the deterministic kernel beside the fast one.",
        {**_SHAPE, **params("guarantee"), **_SPEED, "vs fast": _both("fast")},
    ),
    "ring_tax": Section(
        "The steps of a ring beside one call",
        "",
        {
            **params("family, dtype, D=head_dim, H=heads, chunk, P=ranks, causal"), **_STEPS,
            "steps / one call": over("one_call", ".2f"),
        },
    ),
    "ring_tax_backward": Section(
        "The backward steps of a ring beside one call",
        "",
        {
            **params("family, dtype, D=head_dim, H/Hkv=heads/kv_heads, chunk, P=ranks"), **_STEPS,
            "steps / one call": over("one_call"),
        },
    ),
    "balance": Section(
        "Balance of a causal ring",
        "Every rank's every step timed alone. *Slowest rank*: the sum over steps of the slowest "
        "rank, over all steps of all ranks divided by P; 1 is perfect. *Summed work*: all steps of "
        "all ranks over one causal call on the whole sequence, each as in continuous use; the power "
        "limit moves it by 1 to 2 % between runs.",
        {
            **params("family, layout, P=ranks, chunk, what"), "ratio": ours(),
            "contiguous": peer("contiguous"),
        },
    ),
    "overlap": Section(
        "Overlap",
        "A run beside its kernels alone and its exchanges alone. *local*: all ranks on one card. "
        "*nccl_self*: one NCCL rank that sends to itself for P steps. *sockets*: two processes that "
        "share the card, over NCCL's sockets.",
        {
            **params("family, transport, max_ctas, P=ranks, chunk"), "run ms": ours(),
            "compute ms": peer("compute"), "exchange ms": peer("exchange"),
            "/ the longer": figure(".3f", lambda ours, peers: ours / max(peers.values())),
        },
    ),
    "graph": Section(
        "A local ring as one CUDA graph",
        "Beside a graph of its kernels alone.",
        {
            **params("family, P=ranks, chunk"), "ring ms": ours(), "kernels ms": peer("kernels"),
            "ratio": over("kernels"),
        },
    ),
    "faults": _faults(
        "A rank that fails",
        " A rank with another head_dim is found by `plan.validate` before the first run.",
    ),
    "error": Section(
        "Error against float64",
        "",
        {
            **params("family, dtype, of=what, P=ranks, inputs=distribution"),
            "rms error": ours(".3e"), "/ rounding": over("rounding"), "/ cuDNN": over("cudnn"),
        },
    ),
    "gradient_error": _gradient_error("Error of a ring's gradients"),
    "host_cost": Section(
        "Host time of a call",
        "",
        {**params("call=what, P=ranks"), "µs": ours(".1f"), "peers µs": _hosts_peers},
    ),
    "memory": Section(
        "Memory of a training step",
        "Peak of a step on a rank besides its inputs, on local rings; bf16, 32 / 8 heads, D 128, "
        "causal, zigzag.",
        {
            **params("rows=chunk, P=ranks"), "MB": ours(".0f", 1e6),
            "over P = 2": lambda group: f"{group[0]['ours'] / group[1]['ours']:.3f}",
        },
        _beside_two_ranks,
    ),
}  # fmt: skip


def scale_on_paper(result: Result) -> str:
    """The paper model beside what was measured; empty where nothing can be compared."""
    compared = on_paper.comparisons(result)
    if not compared:
        return ""
    ratios = [round(c.measured / c.predicted, 3) for c in compared]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    lines = (
        [*c[:7], *(f"{x:.3f}" for x in (c.measured, c.predicted, over))]
        for c, over in zip(compared, ratios, strict=True)
    )
    text = (
        "\n### Scale on paper beside these runs\n\nWhat `baracuda-kernels predict --measured` makes of "
        "the single calls above, and of the state's cost in rings without a mask, for the other "
        "rings above; nothing is exchanged in them. *ms*: all steps of all ranks. The middle half "
        f"of the ratios lies between {low:.2f} and {high:.2f}.\n\n"
    )
    head = "family, dtype, D, layout, P, chunk, what, measured, on paper, measured / on paper"
    return text + table(head.split(", "), lines)


# --- several GPUs', as they stand on the page

ACROSS = {
    "scaling": Section(
        "Speed",
        "",
        {
            **_WAY, **params("SMs=max_ctas"), "ms": ours(), "TFLOPS per GPU": _rate,
            "% of ideal": percent("ideal"), "as a graph": percent("ideal", 1),
            "over its steps": over("steps", ".2f"), "vs context_parallel": times("context_parallel"),
            "vs all-gather": times("all_gather"),
            "vs all-gather + our kernel": times("all_gather_own"), "its form": _form,
        },
        by_way,
    ),
    "exchange": Section(
        "The exchange by itself",
        "GB/s each way of a ring's first hop, from the grant to the arrival on the rank that came "
        "last: beside the ring's steps, and for so few queries that nothing is beside it. *Late*: of "
        "the rank that waited longest, beside steps.",
        {
            **_WAY, **params("SMs=max_ctas"),
            "MB": lambda group: f"{group[0]['params']['bytes'] / 1e6:.1f}",
            "beside steps": ours(".0f"), "alone": peer("alone", ".0f"), "late": peer("late", ".0f"),
        },
        by_way,
    ),
    "scaling_step": Section(
        "Exposed communication",
        "Milliseconds of each step, the worst rank's, medians of seven runs. *Exposed*: what a "
        "step's kernel waited for the exchange before it, other ranks' lateness included.",
        {
            **_WAY, "exposed": _each(".3f"), "compute": _each(".3f", "compute"),
            "exchange": _each(".3f", "exchange"),
        },
        by_way,
    ),
    "scaling_memory": Section(
        "Memory",
        "Peak MiB of a rank's tensors over a run: q, k, v, y, two receive buffers, the state. "
        "*Other*: what all else on the GPU grew by from before the run to after it; the first run "
        "connects the ranks and loads the kernel.",
        {
            **_RING, "MiB": ours(".1f", 2**20), "MiB at P = 1": peer("one_rank", ".1f", 2**20),
            "other": peer("other", ".1f", 2**20),
        },
        by_problem,
    ),
    "scaling_error": Section(
        "Answers",
        "Relative error of sampled rows against float64, the worst rank's.",
        {
            **_RING, "ring": ours(".3e"), "one GPU": peer("one_gpu", ".3e"),
            "context_parallel": peer("context_parallel", ".3e"),
            "all-gather": peer("all_gather", ".3e"), "ring / one GPU": over("one_gpu"),
        },
        by_problem,
    ),
    "gradient_error": _gradient_error("Error of gradients"),
    "training": Section(
        "Training",
        "Forward and backward of one layer through `interop.torch`; *ideal*: both on one GPU for the "
        "whole sequence, divided by P. ring-flash-attention 0.1.8 runs on PyTorch's FlashAttention-2 "
        "kernels.",
        {
            **_RING, "step ms": _runs(".3f", "step"), "forward ms": _runs(".3f", "forward"),
            "backward ms": _runs(".3f", "backward"), "% of ideal": percent("ideal"),
            "vs context_parallel": times("context_parallel"),
            "vs ring-flash-attention": times("ring_flash_attention"),
            "form of context_parallel": _form,
        },
        by_problem,
    ),
    "training, jax": Section(
        "Training by JAX",
        "Forward and backward of one layer by `interop.jax` in `shard_map`; XLA moves the chunks. "
        "*Ideal*: both on one GPU for the whole sequence, divided by P, by our kernels and by XLA's "
        "cuDNN attention.",
        {
            **_RING, "step ms": ours(), "% of ideal": percent("ideal"),
            "% of cuDNN's ideal": percent("cudnn_ideal"),
        },
        by_problem,
    ),
    "memory": Section(
        "",
        "Peak of a step besides its inputs, of the worst rank, receive buffers included.",
        {
            **_RING, "ours MB": ours(".0f", 1e6),
            "context_parallel MB": peer("context_parallel", ".0f", 1e6),
            "ring-flash-attention MB": peer("ring_flash_attention", ".0f", 1e6),
        },
        by_problem,
    ),
    "faults": _faults("A rank that fails, a GPU each"),
}  # fmt: skip
