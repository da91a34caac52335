"""The part of docs/performance.md that `benchmarks.scaling`'s results make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

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
    rows = [_named(row) for result in results for row in result["rows"]]
    for name, part in _SECTIONS.items():
        chosen = [row for row in rows if row["name"] == name]
        if chosen:
            text += part(chosen) if callable(part) else part.of(chosen)
    return text


class _Part(NamedTuple):
    """A table with a line for each problem, or for each way in which its chunks move."""

    text: str
    head: str
    cells: Callable[[Sequence[Row]], Sequence[Any]]
    by_way: bool = False

    def of(self, rows: Sequence[Row]) -> str:
        """Its Markdown."""
        of_problems = _by_way(rows) if self.by_way else _by_problem(rows)
        head = "P, rows, layout, causal, " + ("by, " if self.by_way else "") + self.head
        return self.text + table(head, [[*at, *self.cells(of)] for at, of in of_problems])


def _named(row: Row) -> Row:
    """Rows of another framework than PyTorch have a table of their own."""
    framework = row["params"].get("framework")
    return row | {"name": f"{row['name']}, {framework}"} if framework else row


def _what(result: Result) -> str:
    names = {row["name"] for row in result["rows"]}
    if names == {"gradient_error"}:
        return ", error of gradients"
    by_jax = any(row["params"].get("framework") == "jax" for row in result["rows"])
    return f", training{' by JAX' if by_jax else ''}" if "training" in names else ""


def _speed(rows: Sequence[Row]) -> list[Any]:
    runs = {row["params"]["what"]: row for row in rows}
    eager = runs["eager"]
    p, peers, ours = eager["params"], eager["peers"], eager["ours"]
    over = f"{ours / peers['steps']:.2f}" if "steps" in peers else "–"
    ideals = (100 * runs[x]["peers"]["ideal"] / runs[x]["ours"] for x in ("eager", "graph"))
    rate = flops(p) / p["ranks"] / ours / 1e9
    names = ("context_parallel", "all_gather", "all_gather_own")
    return [
        p["max_ctas"], f"{ours:.3f}", f"{rate:.1f}", *(f"{x:.1f}" for x in ideals), over,
        *(ratio(peers, name, ours) for name in names), p["context_parallel"].replace(", ", "/"),
    ]  # fmt: skip


def _exchange(rows: Sequence[Row]) -> list[Any]:
    (row, *_), p = rows, rows[0]["params"]
    speeds = (row["ours"], row["peers"]["alone"], row["peers"]["late"])
    return [p["max_ctas"], f"{p['bytes'] / 1e6:.1f}", *(f"{x:.0f}" for x in speeds)]


def _steps(rows: Sequence[Row]) -> list[str]:
    figures = [[row["ours"] for row in rows]]
    figures += [[row["peers"][name] for row in rows] for name in ("compute", "exchange")]
    return [" / ".join(f"{x:.3f}" for x in of_steps) for of_steps in figures]


def _memory(rows: Sequence[Row]) -> list[str]:
    peers = rows[0]["peers"]
    return [f"{x / 2**20:.1f}" for x in (rows[0]["ours"], peers["one_rank"], peers["other"])]


def _error(rows: Sequence[Row]) -> list[str]:
    ours, peers = rows[0]["ours"], rows[0]["peers"]
    names = ("one_gpu", "context_parallel", "all_gather")
    others = (f"{peers[name]:.3e}" if name in peers else "–" for name in names)
    return [f"{ours:.3e}", *others, f"{ours / peers['one_gpu']:.3f}"]


def _training(rows: Sequence[Row]) -> list[Any]:
    runs = {row["params"]["what"]: row for row in rows}
    step, ours, peers = runs["step"], runs["step"]["ours"], runs["step"]["peers"]
    passes = (f"{runs[x]['ours']:.3f}" if x in runs else "–" for x in ("forward", "backward"))
    others = (ratio(peers, name, ours) for name in ("context_parallel", "ring_flash_attention"))
    form = step["params"]["context_parallel"].replace(", ", "/")
    return [f"{ours:.3f}", *passes, f"{100 * peers['ideal'] / ours:.1f}", *others, form]


def _training_jax(rows: Sequence[Row]) -> list[str]:
    ours, peers = rows[0]["ours"], rows[0]["peers"]
    ideals = (peers.get(name) for name in ("ideal", "cudnn_ideal"))
    return [f"{ours:.3f}", *("–" if x is None else f"{100 * x / ours:.1f}" for x in ideals)]


def _training_memory(rows: Sequence[Row]) -> list[str]:
    peers = rows[0]["peers"]
    others = (peers.get(name) for name in ("context_parallel", "ring_flash_attention"))
    return ["–" if x is None else f"{x / 1e6:.0f}" for x in (rows[0]["ours"], *others)]


def _by_problem(rows: Sequence[Row]) -> Iterable[tuple[list[Any], list[Row]]]:
    """(P, rows, layout, causal) as cells, and the rows of that problem."""
    for (ranks, chunk, layout, causal), of_it in groupby(sorted(rows, key=order), problem_of):
        yield [ranks, chunk, layout, "yes" if causal else "no"], list(of_it)


def _by_way(rows: Sequence[Row]) -> Iterable[tuple[list[Any], list[Row]]]:
    """The same, and what moves the chunks: by peer first. Files of before there was a choice have NCCL."""
    for problem, of_it in _by_problem(rows):
        by: dict[str, list[Row]] = {}
        for row in of_it:
            by.setdefault(row["params"].get("exchange", "nccl"), []).append(row)
        for exchange in sorted(by, reverse=True):
            yield [*problem, exchange], by[exchange]


_SECTIONS: dict[str, _Part | Callable[[Sequence[Row]], str]] = {
    "scaling": _Part(
        "\n### Speed\n\n",
        "SMs, ms, TFLOPS per GPU, % of ideal, as a graph, over its steps, vs context_parallel, "
        "vs all-gather, vs all-gather + our kernel, its form",
        _speed, by_way=True,
    ),
    "exchange": _Part(
        "\n### The exchange by itself\n\nGB/s each way of a ring's first hop, from the grant to the "
        "arrival on the rank that came last: beside the ring's steps, and for so few queries that "
        "nothing is beside it. *Late*: of the rank that waited longest, beside steps.\n\n",
        "SMs, MB, beside steps, alone, late",
        _exchange, by_way=True,
    ),
    "scaling_step": _Part(
        "\n### Exposed communication\n\nMilliseconds of each step, the worst rank's, medians of "
        "seven runs. *Exposed*: what a step's kernel waited for the exchange before it, other "
        "ranks' lateness included.\n\n",
        "exposed, compute, exchange",
        _steps, by_way=True,
    ),
    "scaling_memory": _Part(
        "\n### Memory\n\nPeak MiB of a rank's tensors over a run: q, k, v, y, two receive buffers, "
        "the state. *Other*: what all else on the GPU grew by from before the run to after it; the "
        "first run connects the ranks and loads the kernel.\n\n",
        "MiB, MiB at P = 1, other",
        _memory,
    ),
    "scaling_error": _Part(
        "\n### Answers\n\nRelative error of sampled rows against float64, the worst rank's.\n\n",
        "ring, one GPU, context_parallel, all-gather, ring / one GPU",
        _error,
    ),
    "gradient_error": lambda rows: "\n### Error of gradients\n\n" + gradient_error_table(rows),
    "training": _Part(
        "\n### Training\n\nForward and backward of one layer through `interop.torch`; *ideal*: both on "
        "one GPU for the whole sequence, divided by P. ring-flash-attention 0.1.8 runs on PyTorch's "
        "FlashAttention-2 kernels.\n\n",
        "step ms, forward ms, backward ms, % of ideal, vs context_parallel, "
        "vs ring-flash-attention, form of context_parallel",
        _training,
    ),
    "training, jax": _Part(
        "\n### Training by JAX\n\nForward and backward of one layer by `interop.jax` in `shard_map`; "
        "XLA moves the chunks. *Ideal*: both on one GPU for the whole sequence, divided by P, by our "
        "kernels and by XLA's cuDNN attention.\n\n",
        "step ms, % of ideal, % of cuDNN's ideal",
        _training_jax,
    ),
    "memory": _Part(
        "\nPeak of a step besides its inputs, of the worst rank, receive buffers included.\n\n",
        "ours MB, context_parallel MB, ring-flash-attention MB",
        _training_memory,
    ),
    "faults": lambda rows: "\n### A rank that fails, a GPU each\n\n" + fault_table(rows),
}  # fmt: skip
