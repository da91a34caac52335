"""The part of docs/performance.md that `benchmarks.scaling`'s results make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from benchmarks.across_gpus.params import flops, order, problem_of
from benchmarks.rows import Result, Row
from benchmarks.tables import fault_table, gradient_error_table, ratio, table

_HEAD = """
One process per GPU; bf16, batch 1, each GPU with the given rows of queries and of keys. *Ideal*:
our single call for the whole sequence on one GPU, divided by P, in the same rounds. Times are the
slowest rank's; ratios above 1 mean that the ring (eager) is faster. *context_parallel*: PyTorch's,
in the fastest of its forms, named at the end. *all-gather*: K and V gathered, then PyTorch's
attention (cuDNN; FlashAttention-2, in two balanced halves, when causal) or our kernel. *By*: what
moves the chunks, copy engines (peer) or NCCL's kernels. *SMs*: what the exchanges may take
(`max_ctas`), of those tried (4 and 8 by default) the first that leaves at most 2 % exposed.
"""


def section(results: Sequence[Result], here: str, picture: str) -> str:
    """Of one card's results, one for each number of GPUs.

    Parameters
    ----------
    results : list of dict
        Files of results, read.
    here : str
        The source hash of ``src/`` as it is.
    picture : str
        Name of the picture beside the page.
    """
    card = results[0]["card"]
    text = f"\n## Across GPUs: {card}\n{_HEAD}\n"
    for result in results:
        text += (
            f"- P = {result['ranks']}{_what(result)}: driver {result['driver']}, CUDA {result['cuda']}, "
            f"{result['date']}, source `{result['source_hash']}`"
        )
        if result["source_hash"] != here:
            text += "; **of older sources than `src/` holds now**"
        text += ".\n"
    text += f"\n![% of ideal on several GPUs: {card}]({picture})\n"
    rows = [row for result in results for row in result["rows"]]
    for name, part in _SECTIONS.items():
        chosen = [row for row in rows if row["name"] == name]
        if chosen:
            text += part(chosen)
    return text


def _what(result: Result) -> str:
    names = {row["name"] for row in result["rows"]}
    if names == {"gradient_error"}:
        return ", error of gradients"
    return ", training" if "training" in names else ""


def _speed(rows: Sequence[Row]) -> str:
    lines = []
    for problem, pair in _by_way(rows):
        runs = {row["params"]["what"]: row for row in pair}
        eager = runs["eager"]
        p, peers, ours = eager["params"], eager["peers"], eager["ours"]
        over = f"{ours / peers['steps']:.2f}" if "steps" in peers else "–"
        ideals = [
            f"{100 * runs[what]['peers']['ideal'] / runs[what]['ours']:.1f}"
            for what in ("eager", "graph")
        ]
        names = ("context_parallel", "all_gather", "all_gather_own")
        lines.append(
            [*problem, p["max_ctas"], f"{ours:.3f}", f"{flops(p) / p['ranks'] / ours / 1e9:.1f}", *ideals, over,
             *(ratio(peers, name, ours) for name in names), p["context_parallel"].replace(", ", "/")]
        )  # fmt: skip
    head = "P, rows, layout, causal, by, SMs, ms, TFLOPS per GPU, % of ideal, as a graph, over its steps, "
    head += "vs context_parallel, vs all-gather, vs all-gather + our kernel, its form"
    return "\n### Speed\n\n" + table(head, lines)


def _exchange(rows: Sequence[Row]) -> str:
    lines = []
    for problem, (row, *_) in _by_way(rows):
        p, peers = row["params"], row["peers"]
        speeds = (f"{x:.0f}" for x in (row["ours"], peers["alone"], peers["late"]))
        lines.append([*problem, p["max_ctas"], f"{p['bytes'] / 1e6:.1f}", *speeds])
    text = (
        "\n### The exchange by itself\n\nGB/s each way of a ring's first hop, from the grant to the "
        "arrival on the rank that came last: beside the ring's steps, and for so few queries that "
        "nothing is beside it. *Late*: of the rank that waited longest, beside steps.\n\n"
    )
    head = "P, rows, layout, causal, by, SMs, MB, beside steps, alone, late"
    return text + table(head, lines)


def _steps(rows: Sequence[Row]) -> str:
    lines = []
    for problem, steps in _by_way(rows):
        figures = {
            "exposed": [row["ours"] for row in steps],
            **{name: [row["peers"][name] for row in steps] for name in ("compute", "exchange")},
        }
        lines.append([*problem, *(" / ".join(f"{x:.3f}" for x in f) for f in figures.values())])
    text = (
        "\n### Exposed communication\n\nMilliseconds of each step, the worst rank's, medians of "
        "seven runs. *Exposed*: what a step's kernel waited for the exchange before it, other "
        "ranks' lateness included.\n\n"
    )
    return text + table("P, rows, layout, causal, by, exposed, compute, exchange", lines)


def _memory(rows: Sequence[Row]) -> str:
    lines = []
    for problem, (row, *_) in _by_problem(rows):
        sizes = (row["ours"], row["peers"]["one_rank"], row["peers"]["other"])
        lines.append([*problem, *(f"{size / 2**20:.1f}" for size in sizes)])
    text = (
        "\n### Memory\n\nPeak MiB of a rank's tensors over a run: q, k, v, y, two receive buffers, "
        "the state. *Other*: what all else on the GPU grew by from before the run to after it; the "
        "first run connects the ranks and loads the kernel.\n\n"
    )
    return text + table("P, rows, layout, causal, MiB, MiB at P = 1, other", lines)


def _error(rows: Sequence[Row]) -> str:
    lines = []
    for problem, (row, *_) in _by_problem(rows):
        peers = row["peers"]
        others = [
            f"{peers[name]:.3e}" if name in peers else "–"
            for name in ("one_gpu", "context_parallel", "all_gather")
        ]
        beside = f"{row['ours'] / peers['one_gpu']:.3f}"
        lines.append([*problem, f"{row['ours']:.3e}", *others, beside])
    text = "\n### Answers\n\nRelative error of sampled rows against float64, the worst rank's.\n\n"
    head = "P, rows, layout, causal, ring, one GPU, context_parallel, all-gather, ring / one GPU"
    return text + table(head, lines)


def _faults(rows: Sequence[Row]) -> str:
    return "\n### A rank that fails, a GPU each\n\n" + fault_table(rows)


def _gradient_error(rows: Sequence[Row]) -> str:
    return "\n### Error of gradients\n\n" + gradient_error_table(rows)


def _by_problem(
    rows: Sequence[Row],
) -> Iterable[tuple[list[Any], list[Row]]]:
    """(P, rows, layout, causal) as cells, and the rows of that problem."""
    for (ranks, chunk, layout, causal), of_it in groupby(sorted(rows, key=order), problem_of):
        yield [ranks, chunk, layout, "yes" if causal else "no"], list(of_it)


def _by_way(
    rows: Sequence[Row],
) -> Iterable[tuple[list[Any], list[Row]]]:
    """The same, and what moves the chunks: by peer first. Files of before there was a choice have NCCL."""
    for problem, of_it in _by_problem(rows):
        by = {row["params"].get("exchange", "nccl"): [] for row in of_it}
        for row in of_it:
            by[row["params"].get("exchange", "nccl")].append(row)
        for exchange in sorted(by, reverse=True):
            yield [*problem, exchange], by[exchange]


def _training(rows: Sequence[Row]) -> str:
    lines = []
    for problem, pair in _by_problem(rows):
        runs = {row["params"]["what"]: row for row in pair}
        step, forward = runs["step"], runs["forward"]
        ours, peers = step["ours"], step["peers"]
        backward = f"{runs['backward']['ours']:.3f}" if "backward" in runs else "–"
        lines.append(
            [*problem, f"{ours:.3f}", f"{forward['ours']:.3f}", backward, f"{100 * peers['ideal'] / ours:.1f}",
             *(ratio(peers, name, ours) for name in ("context_parallel", "ring_flash_attention")),
             step["params"]["context_parallel"].replace(", ", "/")]
        )  # fmt: skip
    text = (
        "\n### Training\n\nForward and backward of one layer through `interop.torch`; *ideal*: both on "
        "one GPU for the whole sequence, divided by P. ring-flash-attention 0.1.8 runs on PyTorch's "
        "FlashAttention-2 kernels.\n\n"
    )
    head = "P, rows, layout, causal, step ms, forward ms, backward ms, % of ideal, "
    head += "vs context_parallel, "
    head += "vs ring-flash-attention, form of context_parallel"
    return text + table(head, lines)


def _training_memory(rows: Sequence[Row]) -> str:
    lines = []
    for problem, (row,) in _by_problem(rows):
        peers = (row["peers"].get(name) for name in ("context_parallel", "ring_flash_attention"))
        sizes = (row["ours"], *peers)
        lines.append([*problem, *("–" if x is None else f"{x / 1e6:.0f}" for x in sizes)])
    head = "P, rows, layout, causal, ours MB, context_parallel MB, ring-flash-attention MB"
    text = "\nPeak of a step besides its inputs, of the worst rank, receive buffers included.\n\n"
    return text + table(head, lines)


_SECTIONS = {
    "scaling": _speed,
    "exchange": _exchange,
    "scaling_step": _steps,
    "scaling_memory": _memory,
    "scaling_error": _error,
    "gradient_error": _gradient_error,
    "training": _training,
    "memory": _training_memory,
    "faults": _faults,
}
