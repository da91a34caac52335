"""What a row of results holds, by its kind, and the files that rows lie in."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from benchmarks import ROOT
from benchmarks.source import require_own_sources


class Figures(TypedDict):
    """Our figure, and by name what it is compared with, in the same unit."""

    ours: float
    peers: dict[str, float]


class Row(Figures):
    """One thing measured; `sustained` holds figures of windows that the power limit has seen."""

    name: str
    params: dict[str, Any]
    unit: str
    sustained: NotRequired[Figures]


# Measures some rows of a part, which are kept if the part does not end (evidence.py).
Measurement = Callable[[], list[Row]]


class Part(TypedDict):
    """A part of the evidence in a file of several: what ran when, and how many of the rows are its."""

    driver: str
    cuda: str
    date: str
    source_hash: str
    tests: NotRequired[dict[str, int]]
    rows: int


class Result(TypedDict):
    """A file of results; `ranks` is the number of GPUs of those that took several.

    `parts` are in the order of their rows. Of one GPU they have the names of the evidence's parts, of
    several the dates of their runs. A part may be of another source than the others; the file's own
    `source_hash`, as its `date`, is the newest part's.
    """

    schema: int
    ranks: NotRequired[int]
    card: str
    driver: str
    cuda: str
    date: str
    source_hash: str
    tests: NotRequired[dict[str, int]]
    parts: NotRequired[dict[str, Part]]
    rows: list[Row]


@dataclasses.dataclass(frozen=True)
class RingShape:
    """A ring of a row: bf16, batch 1, `chunk` rows of queries and of keys on each of `ranks`."""

    ranks: int
    chunk: int
    heads: int
    kv_heads: int
    head_dim: int
    layout: str
    causal: bool

    def params(self, **more: Any) -> dict[str, Any]:
        """Of its rows, and `more` of them."""
        return {"dtype": "bf16", **dataclasses.asdict(self), **more}


# The unit of a kind of row, what the params of each say, and behind "or" what those of some do.
_CALL = "family dtype batch heads kv_heads query_len key_len head_dim causal"
_RING = "dtype ranks chunk heads kv_heads head_dim layout causal"
KINDS = {
    "forward": ("ms", _CALL),
    "backward": ("ms", f"{_CALL} guarantee"),
    "ring_tax": ("ms", "family dtype head_dim heads chunk ranks causal"),
    "ring_tax_backward": ("ms", "family dtype head_dim heads kv_heads chunk ranks"),
    "balance": ("ratio", "family layout ranks chunk what"),
    "overlap": ("ms", "family ranks chunk transport or max_ctas"),
    "graph": ("ms", "family ranks chunk"),
    "faults": ("s", "case ranks rings or devices"),
    "error": ("rms", "what family dtype ranks distribution"),
    "gradient_error": ("rms", f"what family {_RING} exchange or devices"),
    "host_cost": ("us", "what ranks"),
    "memory": ("bytes", f"{_RING} exchange"),
    # Of several GPUs. Files of before there was a choice of exchange do without it.
    "scaling": ("ms", f"{_RING} what rounds max_ctas context_parallel or exchange"),
    "scaling_step": ("ms", f"{_RING} step max_ctas or exchange"),
    "scaling_memory": ("bytes", _RING),
    "scaling_error": ("relative", f"{_RING} family"),
    "exchange": ("GB/s", f"{_RING} exchange max_ctas bytes"),
    # By JAX there is no `context_parallel` beside it.
    "training": ("ms", f"{_RING} exchange rounds what or context_parallel framework"),
}


def row(
    name: str,
    params: dict[str, Any],
    ours: float,
    peers: dict[str, float] | None = None,
    sustained: Figures | None = None,
) -> Row:
    """A row of a kind, in the kind's unit, :func:`checked`."""
    unit, _ = KINDS.get(name, ("", ""))
    made = Row(name=name, params=params, unit=unit, ours=ours, peers=peers or {})
    return checked(made if sustained is None else made | {"sustained": sustained})


def checked(one: Row) -> Row:
    """The row, if it is one of its kind.

    Raises
    ------
    ValueError
        If its kind, unit, params or figures are not as `KINDS` says.
    """
    if one["name"] not in KINDS:
        raise ValueError(f"name: got {one['name']!r}, must be one of {', '.join(KINDS)}")
    unit, params = KINDS[one["name"]]
    if one["unit"] != unit:
        raise ValueError(f"{one['name']}: unit: got {one['unit']!r}, must be {unit!r}")
    must, may = (set(names.split()) for names in f"{params} or ".split(" or ")[:2])
    if not must <= one["params"].keys() <= must | may:
        got = sorted(one["params"])
        raise ValueError(f"{one['name']}: params: got {got}, must be {params.split()}")
    for figures in (one, one.get("sustained", one)):
        of = {"ours": figures["ours"], **figures["peers"]}
        wrong = {what: x for what, x in of.items() if type(x) not in (int, float)}
        if wrong:
            raise ValueError(f"{one['name']}: figures: got {wrong}, must be numbers")
    return one


def slug(card: str) -> str:
    """A card's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def head(source_hash: str) -> dict[str, Any]:
    """Of a file of results that this machine writes now."""
    from baracuda_kernels._core import _info  # pages are made without the package

    devices = _info.devices()
    if not devices:
        raise SystemExit("evidence needs a CUDA device, and a build with CUDA")
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    runtime = _info.build_info()["cuda_runtime_version"]
    cuda = f"{runtime // 1000}.{runtime % 1000 // 10}"
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"schema": 1, "card": devices[0]["name"], "driver": driver, "cuda": cuda,
            "date": date, "source_hash": source_hash}  # fmt: skip


def read(path: Path) -> Result:
    """A file of results, every row of it checked."""
    result: Result = json.loads(path.read_text())
    for one in result["rows"]:
        checked(one)
    return result


def rows_by_part(result: Result) -> dict[str, list[Row]]:
    """The rows of each of the file's `parts`."""
    rows = iter(result["rows"])
    return {
        name: list(itertools.islice(rows, part["rows"]))
        for name, part in result.get("parts", {}).items()
    }


def beside_kept(made: Result, path: Path) -> Result:
    """`made`, of several GPUs, and the rows of the file at `path` that it does not replace.

    A row is replaced if `made` has any of the same ring, exchange and framework.
    """
    if not path.is_file():
        return made

    def problem(one: Row) -> tuple[Any, ...]:
        of = one["params"]
        return tuple(of.get(name) for name in (*_RING.split(), "exchange", "framework"))

    again, before = {problem(one) for one in made["rows"]}, read(path)
    parts: dict[str, Any] = before.get("parts", {before["date"]: before})
    rows = rows_by_part(before) if "parts" in before else {before["date"]: before["rows"]}
    kept = {date: [one for one in of if problem(one) not in again] for date, of in rows.items()}
    found = [(parts[date], of) for date, of in kept.items() if of]
    if not found:
        return made
    found.append((made, made["rows"]))
    whole = {
        **made,
        "parts": {of["date"]: {**_origin(of), "rows": len(rows)} for of, rows in found},
        "rows": [one for _, rows in found for one in rows],
    }
    return cast("Result", whole)


def _origin(of: Any) -> dict[str, str]:
    return {name: of[name] for name in ("driver", "cuda", "date", "source_hash")}


def write(path: Path, data: Any) -> None:
    """Write a file of results with one row to a line, so that changes read well."""
    above = {name: value for name, value in data.items() if name != "rows"}
    lines = ",\n".join("  " + json.dumps(row) for row in data["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_name(f"{path.name}.new")  # who is stopped here leaves the file as it was
    begun.write_text(json.dumps(above, indent=1)[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n")
    begun.replace(path)


class Report:
    """Rows of several GPUs: printed as they come, and written to `folder`/`prefix`<ranks>x-<card>.json,
    which keeps those of other problems (`beside_kept`). Of processes rank 0 alone does so.

    Raises
    ------
    SourceMismatch
        If the installed build was made of other sources than lie here.
    """

    def __init__(self, folder: Path | None, prefix: str = "") -> None:
        self._digest, self._start = require_own_sources(ROOT), time.monotonic()
        self._folder, self._prefix = folder, prefix
        self._rows: list[Row] = []

    def add(self, rows: list[Row], *, ranks: int, rank: int = 0) -> None:
        if rank != 0:
            return
        self._rows += rows
        for one in rows:
            peers = "".join(f", {name} {value:.4g}" for name, value in one["peers"].items())
            of = " ".join(f"{name}={value}" for name, value in one["params"].items())
            print(f"{time.monotonic() - self._start:6.1f} s  {one['name']:15} {one['ours']:.4g} "
                  f"{one['unit']}{peers}: {of}", flush=True)  # fmt: skip
        if self._folder is None:
            return
        data: Any = {**head(self._digest), "ranks": ranks, "rows": self._rows}
        path = self._folder / f"{self._prefix}{ranks}x-{slug(data['card'])}.json"
        write(path, beside_kept(data, path))
