"""Writes docs/performance.md and its pictures from benchmarks/results/*.json:
`python -m benchmarks.report`.

`--check` writes nothing and fails if the page or a picture is not what the results say.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from benchmarks import ROOT, plots
from benchmarks.across_gpus import page as across_page
from benchmarks.across_gpus import plot as across_plot
from benchmarks.rows import Result, read
from benchmarks.sections import ORDER, scale_on_paper, section
from benchmarks.source import source_hash

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


def page(results: dict[str, Result]) -> str:
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
    results: dict[str, Result],
) -> tuple[dict[str, Result], dict[str, list[Result]]]:
    """Those of one GPU, and those of several by card, the fewest GPUs first."""
    alone = {name: result for name, result in results.items() if "ranks" not in result}
    across: dict[str, list[Result]] = {}
    for name, result in results.items():
        if "ranks" in result:
            across.setdefault("across-" + re.split(r"\dx-", name)[-1], []).append(result)
    for of_it in across.values():
        of_it.sort(key=lambda result: result["ranks"])
    return alone, across


def _picture(card: str) -> Path:
    return PAGE.with_name(f"performance-{card}.svg")


def _has_gradients(result: Result) -> bool:
    return any(row["name"] == "backward" for row in result["rows"])


def _card(card: str, result: Result, here: str) -> str:
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
    for name in ORDER:
        rows = [row for row in result["rows"] if row["name"] == name]
        if rows:
            text += section(name, rows)
    return text + scale_on_paper(result)



if __name__ == "__main__":
    sys.exit(main())
