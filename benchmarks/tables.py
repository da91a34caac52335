"""Tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.rows import Row


def table(head: str, lines: list[list[Any]]) -> str:
    """Markdown; the head's columns are parted by ", "."""
    columns = head.split(", ")
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


def ratio(peers: dict[str, float], name: str, ours: float) -> str:
    """How many times as long a peer takes; a dash where it is absent."""
    return f"{peers[name] / ours:.2f}" if name in peers else "–"


def fault_table(rows: Sequence[Row]) -> str:
    """Of `faults` rows, with what the figures are."""
    lines = []
    for row in rows:
        p = row["params"]
        times = f"{row['ours']:.2f}", f"{row['peers']['timeout']:.1f}"
        lines.append([p["case"], p["ranks"], p["rings"], *times])
    text = (
        "Seconds from the fault of one rank process until the last of the others had its typed "
        "error, the worst of all rings."
    )
    if any(row["params"]["case"] == "other head_dim" for row in rows):
        text += " A rank with another head_dim is found by `plan.validate` before the first run."
    return text + "\n\n" + table("fault, P, rings, worst s, deadline s", lines)


def tflops(row: Row, ms: float) -> float:
    """Of a `forward` or `backward` row, a call of which takes `ms`."""
    p = row["params"]
    flops = 4 * p["batch"] * p["heads"] * p["query_len"] * p["key_len"] * p["head_dim"]
    if row["name"] == "backward":
        flops *= 2.5
    return (flops / 2 if p["causal"] else flops) / ms / 1e9


def gradient_error_table(rows: Sequence[Row]) -> str:
    """Of `gradient_error` rows, a line for dq, dk and dv together."""
    by_ring: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        p = row["params"]
        ring = (p["family"], p["ranks"], p["layout"], p["causal"], p["exchange"], p.get("devices", 1))
        by_ring.setdefault(ring, {})[p["what"]] = row
    lines = []
    for (family, ranks, layout, causal, exchange, devices), of_it in by_ring.items():
        found = [of_it[what] for what in ("dq", "dk", "dv")]
        rms = (f"{row['ours']:.3e}" for row in found)
        ratios = (f"{row['ours'] / row['peers']['one_rank']:.3f}" for row in found)
        mask = "yes" if causal else "no"
        lines.append([family, ranks, layout, mask, exchange, devices, *rms, *ratios])
    chunk = rows[0]["params"]["chunk"]
    text = (
        f"rms error against float64, {chunk} rows on each rank, and over one rank's on the same "
        "sequence.\n\n"
    )
    head = "family, P, layout, causal, by, GPUs, dq, dk, dv, dq / one rank, dk / one rank, dv / one rank"
    return text + table(head, lines)
