"""Writes docs/performance.md and its pictures from benchmarks/results/*.json:
`python -m benchmarks.report`.

`--check` writes nothing and fails if the page or a picture is not what the results say.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import ROOT, on_paper, plots
from benchmarks.across_gpus import page as across_page
from benchmarks.across_gpus import plot as across_plot
from benchmarks.rows import read
from benchmarks.source import source_hash
from benchmarks.tables import fault_table, gradient_error_table, ratio, table, tflops

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"

_HEAD = """# Performance

<!-- Written by `python -m benchmarks.report` from benchmarks/results/*.json; do not edit. -->

How it is measured: through the public plans, on random inputs that are rotated so that none is
found in the L2 cache, in interleaved rounds (seven or nine, of sustained windows three, each in a
random order). Ratios are medians of the ratios within a round. `cudnn` and `fa2` are PyTorch's
`scaled_dot_product_attention` on its cuDNN and FlashAttention-2 backends, `fa3` is FlashAttention-3
(`dew-flash-attn-cu13` 0.3.6, through JAX). A ratio above 1 means that we are faster.

Single calls and their gradients are timed by the host's clock, in windows of at least 20 calls.
Where a ratio is a pair, its first figure is of *sustained* windows of 300 ms, in which the card's
power limit has settled, as in training and prefill; the second is of *bursts* of 15 ms. Milliseconds
and TFLOPS are of sustained windows where there are such.
"""

_NOTHING = """
There are no results yet. On a machine with a GPU:

    python -m benchmarks.evidence --part forward --out out
    python -m benchmarks.evidence --merge out
    python -m benchmarks.report
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if `--check` finds the page or a picture out of date."""
    arguments = sys.argv[1:] if arguments is None else arguments
    results = {path.stem: read(path) for path in sorted(RESULTS.glob("*.json"))}
    text = page(results)
    alone, across = _split(results)
    if "--check" in arguments:
        stale = [] if PAGE.is_file() and PAGE.read_text() == text else [PAGE]
        drawn = {card: [result] for card, result in alone.items()} | across
        for card, result in alone.items():
            drawn |= {f"backward-{card}": [result]} if _has_gradients(result) else {}
        for card, of_it in drawn.items():
            picture = _picture(card)
            if not picture.is_file() or plots.mark(of_it) not in picture.read_text():
                stale.append(picture)
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the results say", file=sys.stderr)
        return 1 if stale else 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    for card, result in alone.items():
        plots.draw(result, _picture(card))
        if _has_gradients(result):
            plots.draw_backward(result, _picture(f"backward-{card}"))
    for card, of_it in across.items():
        across_plot.draw(of_it, _picture(card))
    return 0


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page's text, from the results by the names of their files."""
    if not results:
        return _HEAD + _NOTHING
    here = source_hash(ROOT)
    alone, across = _split(results)
    text = _HEAD + "".join(_card(card, result, here) for card, result in alone.items())
    for card, of_it in across.items():
        text += across_page.section(of_it, here, _picture(card).name)
    return text


def _split(
    results: dict[str, dict[str, Any]],
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Those of one GPU, and those of several by card, the fewest GPUs first."""
    alone = {name: result for name, result in results.items() if "ranks" not in result}
    across: dict[str, list[dict[str, Any]]] = {}
    for name, result in results.items():
        if "ranks" in result:
            across.setdefault("across-" + name.partition("x-")[2], []).append(result)
    for of_it in across.values():
        of_it.sort(key=lambda result: result["ranks"])
    return alone, across


def _picture(card: str) -> Path:
    return PAGE.with_name(f"performance-{card}.svg")


def _has_gradients(result: dict[str, Any]) -> bool:
    return any(row["name"] == "backward" for row in result["rows"])


def _card(card: str, result: dict[str, Any], here: str) -> str:
    tests = result["tests"]
    text = (
        f"\n## {result['card']}\n\n"
        f"Driver {result['driver']}, CUDA {result['cuda']}, {result['date']}, source "
        f"`{result['source_hash']}`; tests: {tests['passed']} passed, {tests['failed']} failed, "
        f"{tests['skipped']} skipped.\n"
    )
    if result["source_hash"] != here:
        text += "\n**These results are of older sources than `src/` holds now.**\n"
    name = _picture(card).name
    text += f"\n![TFLOPS, ring steps and error on the {result['card']}]({name})\n"
    if _has_gradients(result):
        name = _picture(f"backward-{card}").name
        text += f"\n![TFLOPS of gradients on the {result['card']}]({name})\n"
    for name, section in _SECTIONS.items():
        rows = [row for row in result["rows"] if row["name"] == name]
        if rows:
            text += section(rows)
    return text + _on_paper(result)


def _forward(rows: list[dict[str, Any]]) -> str:
    lines = [_call(row) for row in rows]
    head = "family, dtype, D, B, H/Hkv, S, causal, ms, TFLOPS, vs fa2, vs cuDNN, vs fa3"
    return "\n### One attention call\n\n" + table(head, lines)


def _backward(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        line = _call(row)
        line.insert(7, row["params"]["guarantee"])
        lines.append([*line, _both(row, "fast")])
    text = (
        "\n### Gradients of one attention call\n\nThe whole backward pass; TFLOPS count 2.5 times "
        "the forward pass's operations. *vs fast*: the deterministic kernel beside the fast one.\n\n"
    )
    head = (
        "family, dtype, D, B, H/Hkv, S, causal, guarantee, ms, TFLOPS, vs fa2, vs cuDNN, vs fa3, "
        "vs fast"
    )
    return text + table(head, lines)


def _call(row: dict[str, Any]) -> list[Any]:
    """A line of one call beside its peers."""
    p, kept = row["params"], row.get("sustained", row)
    return [
        *(p["family"], p["dtype"], p["head_dim"], p["batch"], f"{p['heads']}/{p['kv_heads']}"),
        *(p["query_len"], "yes" if p["causal"] else "no", f"{kept['ours']:.3f}"),
        f"{tflops(row, kept['ours']):.1f}",
        *(_both(row, name) for name in ("fa2", "cudnn", "fa3")),
    ]


def _both(row: dict[str, Any], peer: str) -> str:
    """A peer's ratio, sustained before burst where there are both."""
    burst = ratio(row["peers"], peer, row["ours"])
    kept = row.get("sustained")
    return burst if kept is None else f"{ratio(kept['peers'], peer, kept['ours'])} / {burst}"


def _ring_tax(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        p = row["params"]
        lines.append(
            [
                *(p["family"], p["dtype"], p["head_dim"], p["heads"], p["chunk"], p["ranks"]),
                *("yes" if p["causal"] else "no", f"{row['ours']:.3f}"),
                f"{row['peers']['one_call']:.3f}",
                f"{row['ours'] / row['peers']['one_call']:.2f}",
            ]
        )
    head = "family, dtype, D, H, chunk, P, causal, steps ms, one call ms, steps / one call"
    return "\n### The steps of a ring beside one call\n\n" + table(head, lines)


def _ring_tax_backward(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        p, one_call = row["params"], row["peers"]["one_call"]
        lines.append(
            [
                *(p["family"], p["dtype"], p["head_dim"], f"{p['heads']}/{p['kv_heads']}"),
                *(p["chunk"], p["ranks"], f"{row['ours']:.3f}", f"{one_call:.3f}"),
                f"{row['ours'] / one_call:.3f}",
            ]
        )
    head = "family, dtype, D, H/Hkv, chunk, P, steps ms, one call ms, steps / one call"
    return "\n### The backward steps of a ring beside one call\n\n" + table(head, lines)


def _error(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        p, peers = row["params"], row["peers"]
        lines.append(
            [
                *(p["family"], p["dtype"], p.get("what", "y"), p["ranks"], p["distribution"]),
                f"{row['ours']:.3e}",
                f"{row['ours'] / peers['rounding']:.3f}",
                f"{row['ours'] / peers['cudnn']:.3f}" if "cudnn" in peers else "–",
            ]
        )
    head = "family, dtype, of, P, inputs, rms error, / rounding, / cuDNN"
    return "\n### Error against float64\n\n" + table(head, lines)


def _gradient_error(rows: list[dict[str, Any]]) -> str:
    return "\n### Error of a ring's gradients\n\n" + gradient_error_table(rows)


def _host_cost(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        peers = ", ".join(f"{name} {value:.1f}" for name, value in row["peers"].items()) or "–"
        lines.append([row["params"]["what"], row["params"]["ranks"], f"{row['ours']:.1f}", peers])
    return "\n### Host time of a call\n\n" + table("call, P, µs, peers µs", lines)


def _memory(rows: list[dict[str, Any]]) -> str:
    two = {row["params"]["chunk"]: row["ours"] for row in rows if row["params"]["ranks"] == 2}
    lines = []
    for row in rows:
        p = row["params"]
        over = f"{row['ours'] / two[p['chunk']]:.3f}" if p["chunk"] in two else "–"
        lines.append([p["chunk"], p["ranks"], f"{row['ours'] / 1e6:.0f}", over])
    text = (
        "\n### Memory of a training step\n\nPeak of a step on a rank besides its inputs, on local rings; "
        "bf16, 32 / 8 heads, D 128, causal, zigzag.\n\n"
    )
    return text + table("rows, P, MB, over P = 2", lines)


def _balance(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        p = row["params"]
        contiguous = f"{row['peers']['contiguous']:.3f}"
        lines.append(
            [*(p[k] for k in ("family", "layout", "ranks", "chunk", "what")),
             f"{row['ours']:.3f}", contiguous]
        )  # fmt: skip
    text = (
        "\n### Balance of a causal ring\n\nEvery rank's every step timed alone. *Slowest rank*: "
        "the sum over steps of the slowest rank, over all steps of all ranks divided by P; 1 is "
        "perfect. *Summed work*: all steps of all ranks over one causal call on the whole "
        "sequence, each as in continuous use; the power limit moves it by 1 to 2 % between runs.\n\n"
    )
    return text + table("family, layout, P, chunk, what, ratio, contiguous", lines)


def _overlap(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        p, peers = row["params"], row["peers"]
        longer = max(peers.values())
        lines.append(
            [*(p["family"], p["transport"], p.get("max_ctas", "–"), p["ranks"], p["chunk"]),
             *(f"{ms:.3f}" for ms in (row["ours"], peers["compute"], peers["exchange"])),
             f"{row['ours'] / longer:.3f}"]
        )  # fmt: skip
    text = (
        "\n### Overlap\n\nA run beside its kernels alone and its exchanges alone. *local*: all "
        "ranks on one card. *nccl_self*: one NCCL rank that sends to itself for P steps. "
        "*sockets*: two processes that share the card, over NCCL's sockets.\n\n"
    )
    head = "family, transport, max_ctas, P, chunk, run ms, compute ms, exchange ms, / the longer"
    return text + table(head, lines)


def _graph(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        p, kernels = row["params"], row["peers"]["kernels"]
        lines.append(
            [p["family"], p["ranks"], p["chunk"], f"{row['ours']:.3f}", f"{kernels:.3f}",
             f"{row['ours'] / kernels:.3f}"]
        )  # fmt: skip
    text = "\n### A local ring as one CUDA graph\n\nBeside a graph of its kernels alone.\n\n"
    return text + table("family, P, chunk, ring ms, kernels ms, ratio", lines)


def _faults(rows: list[dict[str, Any]]) -> str:
    return "\n### A rank that fails\n\n" + fault_table(rows)


def _on_paper(result: dict[str, Any]) -> str:
    compared = on_paper.comparisons(result)
    if not compared:
        return ""
    lines = [
        [
            *(c.family, c.dtype, c.head_dim, c.layout, c.ranks, c.chunk, c.what),
            *(f"{c.measured:.3f}", f"{c.predicted:.3f}", f"{c.measured / c.predicted:.3f}"),
        ]
        for c in compared
    ]
    text = (
        "\n### Scale on paper beside these runs\n\nWhat `baracuda-kernels plan --measured` makes of "
        "the single calls above, and of the state's cost in rings without a mask, for the other "
        "rings above; nothing is exchanged in them. *ms*: all steps of all ranks. The middle half "
        f"of the ratios lies between {_quartiles(lines)}.\n\n"
    )
    head = "family, dtype, D, layout, P, chunk, what, measured, on paper, measured / on paper"
    return text + table(head, lines)


def _quartiles(lines: list[list[Any]]) -> str:
    ratios = [float(line[-1]) for line in lines]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return f"{low:.2f} and {high:.2f}"


_SECTIONS = {
    "forward": _forward,
    "backward": _backward,
    "ring_tax": _ring_tax,
    "ring_tax_backward": _ring_tax_backward,
    "balance": _balance,
    "overlap": _overlap,
    "graph": _graph,
    "faults": _faults,
    "error": _error,
    "gradient_error": _gradient_error,
    "host_cost": _host_cost,
    "memory": _memory,
}


if __name__ == "__main__":
    sys.exit(main())
