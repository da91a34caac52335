"""Writes docs/performance.md and its pictures from benchmarks/results/*.json:
`python -m benchmarks.report`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks import ROOT, plots
from benchmarks.rows import Part, Result, Row, read, rows_by_part
from benchmarks.sections import ACROSS, ALONE, scale_on_paper
from benchmarks.source import source_hash
from benchmarks.tables import Section

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"

_HEAD = """# Performance

<!-- Written by `python -m benchmarks.report` from benchmarks/results/*.json; do not edit. -->

How it is measured: through the public plans, on random inputs that are rotated so that none is
found in the L2 cache, in interleaved rounds, each in another order. Ratios are medians of the ratios
within a round. `cudnn` and `fa2` are PyTorch's `scaled_dot_product_attention` on its cuDNN and
FlashAttention-2 backends, `fa3` is FlashAttention-3 (`dew-flash-attn-cu13` 0.3.6, through JAX). A
ratio above 1 means that we are faster.

Single calls and their gradients are timed by the host's clock, in windows of at least 20 calls.
Where a ratio is a pair, its first figure is of *sustained* windows at the card's power limit, as in
training and prefill; the second is of *bursts* of 15 ms. Milliseconds and TFLOPS are of sustained windows
where there are such. These last 800 ms and differ by 0.2 % from one to the next; those from before
2026-11-29, 11:00 lasted 300 ms and differ by 1 %, and by up to 5 % if they are from before 10:00
([What comes before a window](kernel-log/timing.md#what-comes-before-a-window)).

Parts may have been measured with different versions of the source code. Of the tables of calls and of
gradients, `forward` and `backward` have the first rows, and `forward_more` and `backward_more` the others
([Evidence](developer-guide.md#evidence)).
"""

_OLDER = "\n**These {} are of older sources than `src/` holds now.**\n"

_ACROSS = """
One process per GPU; bf16, batch 1, each GPU with the given rows of queries and of keys. *Ideal*:
our single call for the whole sequence on one GPU, divided by P, in the same rounds. Times are the
slowest rank's; ratios above 1 mean that the ring (eager) is faster. *context_parallel*: PyTorch's,
in the fastest of its forms, named at the end. *all-gather*: K and V gathered, then PyTorch's
attention (cuDNN; FlashAttention-2, in two balanced halves, when causal) or our kernel. *Ulysses*:
all rows of a share of the heads by all-to-all, then our kernel. *By*: what
moves the chunks, copy engines (peer) or NCCL's kernels. *SMs*: what the exchanges may take
(`max_ctas`), of those tried (4 and 8 by default) the first that leaves at most 2 % exposed.
"""

# What a file is of whose first row is such, if not of speed.
_OTHERS = {"gradient_error": ", error of gradients", "training": ", training",
           "training, jax": ", training by JAX"}  # fmt: skip
# Its file, what it shows, and what draws it.
Picture = tuple[str, str, Callable[[Result, Path], None]]


def main() -> None:
    """Writes them all."""
    results = {path.stem: read(path) for path in sorted(RESULTS.glob("*.json"))}
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(results))
    alone, across = _split(results)
    for card, result in alone.items():
        for name, _, draw in _pictures(card, result):
            draw(result, PAGE.with_name(name))
    for card, of_it in across.items():
        for name, _, kind in _pictures_across(card, of_it):
            plots.draw_across(of_it, PAGE.with_name(name), kind)


def page(results: dict[str, Result]) -> str:
    """The page's text, from the results by the names of their files."""
    here = source_hash(ROOT)
    alone, across = _split(results)
    text = _HEAD + "".join(_alone(card, result, here) for card, result in alone.items())
    return text + "".join(_across(card, of_it, here) for card, of_it in across.items())


def _split(results: dict[str, Result]) -> tuple[dict[str, Result], dict[str, list[Result]]]:
    """Those of one GPU, and those of several by card, the fewest GPUs first."""
    alone = {name: result for name, result in results.items() if "ranks" not in result}
    across: dict[str, list[Result]] = {}
    for name, result in sorted(results.items(), key=lambda item: item[1].get("ranks", 0)):
        if "ranks" in result:
            across.setdefault("across-" + re.split(r"\dx-", name)[-1], []).append(result)
    return alone, dict(sorted(across.items()))


def _pictures(card: str, result: Result) -> Iterator[Picture]:
    yield f"performance-{card}.svg", "TFLOPS, ring steps and error", plots.draw
    if any(row["name"] == "backward" for row in result["rows"]):
        yield f"performance-backward-{card}.svg", "TFLOPS of gradients", plots.draw_backward


def _pictures_across(card: str, results: list[Result]) -> Iterator[tuple[str, str, str]]:
    """Of each: its file, what it shows, and the kind of its rows."""
    yield f"performance-{card}.svg", "% of ideal on several GPUs", "scaling"
    if any(_named(row)["name"] == "training" for result in results for row in result["rows"]):
        yield f"performance-training-{card}.svg", "% of ideal of training on several GPUs", "training"


def _sections(sections: dict[str, Section], rows: list[Row]) -> str:
    of_kind = {name: [row for row in rows if row["name"] == name] for name in sections}
    return "".join(section.of(of_kind[name]) for name, section in sections.items() if of_kind[name])


def _alone(card: str, result: Result, here: str) -> str:
    text = f"\n## {result['card']}\n" + _origins(result, here)
    for name, shown, _ in _pictures(card, result):
        text += f"\n![{shown} on the {result['card']}]({name})\n"
    return text + _sections(ALONE, result["rows"]) + scale_on_paper(result)


def _origins(result: Result, here: str) -> str:
    """What the rows of one GPU were measured with, the newest parts first."""
    parts = result.get("parts")
    if parts is None:
        older = _OLDER.format("results") if result["source_hash"] != here else ""
        return f"\n{_origin(result, result['tests'])}.\n{older}"
    of_sources: dict[str, list[str]] = {}
    for name in sorted(parts, key=lambda name: parts[name]["date"], reverse=True):
        of_sources.setdefault(parts[name]["source_hash"], []).append(name)
    text = ""
    for source, names in of_sources.items():
        tests = sum((Counter(parts[name]["tests"]) for name in names), Counter())
        listed = ", ".join(f"`{name}`" for name in parts if name in names)
        text += f"\n{_origin(parts[names[0]], tests)}. Parts: {listed}.\n"
        text += _OLDER.format("parts") if source != here else ""
    return text


def _origin(of: Result | Part, tests: Mapping[str, int]) -> str:
    text = f"Driver {of['driver']}, CUDA {of['cuda']}, {of['date']}, source `{of['source_hash']}`"
    if not any(tests.values()):
        return text
    counts = (f"{tests[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    return f"{text}; tests: {', '.join(counts)}"


def _across(card: str, results: list[Result], here: str) -> str:
    """Of one card's results, one for each number of GPUs and thing measured."""
    text = f"\n## Across GPUs: {results[0]['card']}\n{_ACROSS}\n"
    for result in results:
        what = f"P = {result['ranks']}{_OTHERS.get(_named(result['rows'][0])['name'], '')}"
        rows = rows_by_part(result)
        for date, of in result.get("parts", {}).items():
            with_rows = [one["params"] for one in rows[date] if one["name"] != "faults"]
            chunks = sorted({params["chunk"] for params in with_rows})
            text += _of_several(f"{what}, {', '.join(map(str, chunks))} rows a GPU", of, here)
        if not rows:
            text += _of_several(what, result, here)
    for name, shown, _ in _pictures_across(card, results):
        text += f"\n![{shown}: {results[0]['card']}]({name})\n"
    return text + _sections(ACROSS, [_named(row) for result in results for row in result["rows"]])


def _of_several(what: str, of: Result | Part, here: str) -> str:
    text = f"- {what}: driver {of['driver']}, CUDA {of['cuda']}, {of['date']}, source `{of['source_hash']}`"
    older = "; **of older sources than `src/` holds now**" if of["source_hash"] != here else ""
    return f"{text}{older}.\n"


def _named(row: Row) -> Row:
    """Rows of another framework than PyTorch have a table of their own."""
    framework = row["params"].get("framework")
    return row | {"name": f"{row['name']}, {framework}"} if framework else row


if __name__ == "__main__":
    main()
