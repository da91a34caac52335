"""The sections of docs/performance.md that one card's rows make: a table for each kind of row."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import on_paper
from benchmarks.rows import Result, Row
from benchmarks.tables import fault_table, gradient_error_table, ratio, table, tflops

# A line of a table from one row; it is given all rows of the kind, too.
Line = Callable[[Row, Sequence[Row]], list[Any]]


class Section(NamedTuple):
    """A heading, what the figures are, and a table with a line for each row."""

    title: str
    head: str
    line: Line
    text: str = ""

    def of(self, rows: Sequence[Row]) -> str:
        """Its Markdown."""
        text = f"\n### {self.title}\n\n" + (f"{self.text}\n\n" if self.text else "")
        return text + table(self.head, [self.line(row, rows) for row in rows])


def section(name: str, rows: Sequence[Row]) -> str:
    """The Markdown of all rows of one kind, with their heading."""
    if name == "gradient_error":
        return "\n### Error of a ring's gradients\n\n" + gradient_error_table(rows)
    if name == "faults":
        return "\n### A rank that fails\n\n" + fault_table(rows)
    return SECTIONS[name].of(rows)


def _params(row: Row, names: str) -> list[Any]:
    """Cells of params by name; "heads/kv_heads" are two in one."""
    cells: list[Any] = []
    for name in names.split():
        if "/" in name:
            cells.append("/".join(str(row["params"][part]) for part in name.split("/")))
        else:
            value = row["params"].get(name, "–")
            cells.append(("no", "yes")[value] if isinstance(value, bool) else value)
    return cells


def _over(row: Row, peer: str, digits: int, *, own: bool = True) -> list[str]:
    """Our figure, a peer's and their ratio."""
    ours, theirs = row["ours"], row["peers"][peer]
    figures = [f"{ours:.3f}", f"{theirs:.3f}"] if own else []
    return [*figures, f"{ours / theirs:.{digits}f}"]


def _both(row: Row, peer: str) -> str:
    """A peer's ratio, sustained before burst where there are both."""
    burst = ratio(row["peers"], peer, row["ours"])
    kept = row.get("sustained")
    return burst if kept is None else f"{ratio(kept['peers'], peer, kept['ours'])} / {burst}"


def _call(row: Row, guarantee: str = "") -> list[Any]:
    """A line of one call beside its peers."""
    ms = row.get("sustained", row)["ours"]
    names = f"family dtype head_dim batch heads/kv_heads query_len causal {guarantee}"
    ratios = (_both(row, name) for name in ("fa2", "cudnn", "fa3"))
    return [*_params(row, names), f"{ms:.3f}", f"{tflops(row, ms):.1f}", *ratios]


def _error(row: Row, _: Sequence[Row]) -> list[Any]:
    peers = row["peers"]
    beside = f"{row['ours'] / peers['cudnn']:.3f}" if "cudnn" in peers else "–"
    return [
        *_params(row, "family dtype what ranks distribution"), f"{row['ours']:.3e}",
        f"{row['ours'] / peers['rounding']:.3f}", beside,
    ]  # fmt: skip


def _host_cost(row: Row, _: Sequence[Row]) -> list[Any]:
    peers = ", ".join(f"{name} {value:.1f}" for name, value in row["peers"].items()) or "–"
    return [*_params(row, "what ranks"), f"{row['ours']:.1f}", peers]


def _memory(row: Row, rows: Sequence[Row]) -> list[Any]:
    two = {r["params"]["chunk"]: r["ours"] for r in rows if r["params"]["ranks"] == 2}
    of_two = two.get(row["params"]["chunk"])
    over = "–" if of_two is None else f"{row['ours'] / of_two:.3f}"
    return [*_params(row, "chunk ranks"), f"{row['ours'] / 1e6:.0f}", over]


def _overlap(row: Row, _: Sequence[Row]) -> list[Any]:
    peers = row["peers"]
    figures = (f"{ms:.3f}" for ms in (row["ours"], peers["compute"], peers["exchange"]))
    longer = f"{row['ours'] / max(peers.values()):.3f}"
    return [*_params(row, "family transport max_ctas ranks chunk"), *figures, longer]


SECTIONS = {
    "forward": Section(
        "One attention call",
        "family, dtype, D, B, H/Hkv, S, causal, ms, TFLOPS, vs fa2, vs cuDNN, vs fa3",
        lambda row, _: _call(row),
    ),
    "backward": Section(
        "Gradients of one attention call",
        "family, dtype, D, B, H/Hkv, S, causal, guarantee, ms, TFLOPS, vs fa2, vs cuDNN, vs fa3, "
        "vs fast",
        lambda row, _: [*_call(row, "guarantee"), _both(row, "fast")],
        "The whole backward pass; TFLOPS count 2.5 times the forward pass's operations. *vs fast*: "
        "the deterministic kernel beside the fast one.",
    ),
    "ring_tax": Section(
        "The steps of a ring beside one call",
        "family, dtype, D, H, chunk, P, causal, steps ms, one call ms, steps / one call",
        lambda row, _: [
            *_params(row, "family dtype head_dim heads chunk ranks causal"),
            *_over(row, "one_call", 2),
        ],
    ),
    "ring_tax_backward": Section(
        "The backward steps of a ring beside one call",
        "family, dtype, D, H/Hkv, chunk, P, steps ms, one call ms, steps / one call",
        lambda row, _: [
            *_params(row, "family dtype head_dim heads/kv_heads chunk ranks"),
            *_over(row, "one_call", 3),
        ],
    ),
    "balance": Section(
        "Balance of a causal ring",
        "family, layout, P, chunk, what, ratio, contiguous",
        lambda row, _: [
            *_params(row, "family layout ranks chunk what"), *_over(row, "contiguous", 3)[:2]
        ],
        "Every rank's every step timed alone. *Slowest rank*: the sum over steps of the slowest "
        "rank, over all steps of all ranks divided by P; 1 is perfect. *Summed work*: all steps of "
        "all ranks over one causal call on the whole sequence, each as in continuous use; the power "
        "limit moves it by 1 to 2 % between runs.",
    ),
    "overlap": Section(
        "Overlap",
        "family, transport, max_ctas, P, chunk, run ms, compute ms, exchange ms, / the longer",
        _overlap,
        "A run beside its kernels alone and its exchanges alone. *local*: all ranks on one card. "
        "*nccl_self*: one NCCL rank that sends to itself for P steps. *sockets*: two processes that "
        "share the card, over NCCL's sockets.",
    ),
    "graph": Section(
        "A local ring as one CUDA graph",
        "family, P, chunk, ring ms, kernels ms, ratio",
        lambda row, _: [*_params(row, "family ranks chunk"), *_over(row, "kernels", 3)],
        "Beside a graph of its kernels alone.",
    ),
    "error": Section(
        "Error against float64",
        "family, dtype, of, P, inputs, rms error, / rounding, / cuDNN",
        _error,
    ),
    "host_cost": Section("Host time of a call", "call, P, µs, peers µs", _host_cost),
    "memory": Section(
        "Memory of a training step",
        "rows, P, MB, over P = 2",
        _memory,
        "Peak of a step on a rank besides its inputs, on local rings; bf16, 32 / 8 heads, D 128, "
        "causal, zigzag.",
    ),
}  # fmt: skip
# As they stand on the page.
ORDER = (
    "forward", "backward", "ring_tax", "ring_tax_backward", "balance", "overlap", "graph",
    "faults", "error", "gradient_error", "host_cost", "memory",
)  # fmt: skip


def scale_on_paper(result: Result) -> str:
    """The paper model beside what was measured; empty where nothing can be compared."""
    compared = on_paper.comparisons(result)
    if not compared:
        return ""
    ratios = [round(c.measured / c.predicted, 3) for c in compared]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    lines = [
        [*c[1:4], c.layout, c.ranks, c.chunk, c.what, *(f"{x:.3f}" for x in (*c[-2:], over))]
        for c, over in zip(compared, ratios, strict=True)
    ]
    text = (
        "\n### Scale on paper beside these runs\n\nWhat `baracuda-kernels predict --measured` makes of "
        "the single calls above, and of the state's cost in rings without a mask, for the other "
        "rings above; nothing is exchanged in them. *ms*: all steps of all ranks. The middle half "
        f"of the ratios lies between {low:.2f} and {high:.2f}.\n\n"
    )
    head = "family, dtype, D, layout, P, chunk, what, measured, on paper, measured / on paper"
    return text + table(head, lines)
