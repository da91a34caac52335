"""``bench ring --trace``: a run's lanes as a Chrome trace, which Perfetto and Chrome open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baracuda_kernels.cli._console import json_text, written

# The lanes of a rank from top to bottom, as in the picture.
LANES = ("compute", "exchange", "exposed")


def write_trace(path: Path, result: dict[str, Any]) -> None:
    """Write the lanes of ``bench ring``'s result: a process for each rank, a thread for each lane.

    Raises
    ------
    FileProblemError
        If the file cannot be written.
    """
    with written(path) as file:
        file.write(json_text(trace(result), indent=None).encode() + b"\n")


def trace(result: dict[str, Any]) -> dict[str, Any]:
    """The Chrome trace, in the JSON object format: its times are microseconds."""
    ranks = result["ranks"]
    events: list[dict[str, Any]] = []
    for rank in range(ranks):
        events.append(_name("process_name", f"rank {rank}", rank))
        events += [_name("thread_name", lane, rank, tid) for tid, lane in enumerate(LANES)]
    for span in result["lanes"]:
        rank, step, name = span["rank"], span["step"], span["name"]
        # The origin of the chunk of this step. The concurrent exchange sends the chunk on.
        origin = (rank - step) % ranks
        events.append(
            {
                "ph": "X",
                "name": f"{name}, step {step}",
                "cat": name,
                "pid": rank,
                "tid": LANES.index(name),
                "ts": span["begin"] * 1000,
                "dur": (span["end"] - span["begin"]) * 1000,
                "args": {"step": step, "chunk": origin},
            }
        )
    about = {name: value for name, value in result.items() if name not in ("steps", "lanes")}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _name(kind: str, name: str, rank: int, lane: int = 0) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": lane, "args": {"name": name}}
