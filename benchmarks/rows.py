"""What a row of results holds, by its kind, and the files that rows lie in."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

SCHEMA = 1


class Figures(TypedDict):
    """Our figure, and by name what it is compared with, in the same unit."""

    ours: float
    peers: dict[str, float]


class Row(Figures):
    """One thing measured; `sustained` holds the figures of windows that the power limit has seen."""

    name: str
    params: dict[str, Any]
    unit: str
    sustained: NotRequired[Figures]


class Result(TypedDict):
    """A file of results; `ranks` is the number of GPUs of those that took several."""

    schema: int
    ranks: NotRequired[int]
    card: str
    driver: str
    cuda: str
    date: str
    source_hash: str
    tests: NotRequired[dict[str, int]]
    rows: list[Row]


class Kind(NamedTuple):
    """What every row of a kind says; `may` is what some of its params say besides."""

    unit: str
    params: frozenset[str]
    may: frozenset[str] = frozenset()


def _kind(unit: str, params: str, may: str = "") -> Kind:
    return Kind(unit, frozenset(params.split()), frozenset(may.split()))


_CALL = "family dtype batch heads kv_heads query_len key_len head_dim causal"
_RING = "dtype ranks chunk heads kv_heads head_dim layout causal"
KINDS = {
    "forward": _kind("ms", _CALL),
    "backward": _kind("ms", f"{_CALL} guarantee"),
    "ring_tax": _kind("ms", "family dtype head_dim heads chunk ranks causal"),
    "ring_tax_backward": _kind("ms", "family dtype head_dim heads kv_heads chunk ranks"),
    "balance": _kind("ratio", "family layout ranks chunk what"),
    "overlap": _kind("ms", "family ranks chunk transport", "max_ctas"),
    "graph": _kind("ms", "family ranks chunk"),
    "faults": _kind("s", "case ranks rings", "devices"),
    "error": _kind("rms", "what family dtype ranks distribution"),
    "gradient_error": _kind("rms", f"what family {_RING} exchange", "devices"),
    "host_cost": _kind("us", "what ranks"),
    "memory": _kind("bytes", f"{_RING} exchange"),
    # Of several GPUs. Files of before there was a choice of exchange do without it.
    "scaling": _kind("ms", f"{_RING} what rounds max_ctas context_parallel", "exchange"),
    "scaling_step": _kind("ms", f"{_RING} step max_ctas", "exchange"),
    "scaling_memory": _kind("bytes", _RING),
    "scaling_error": _kind("relative", f"{_RING} family"),
    "exchange": _kind("GB/s", f"{_RING} exchange max_ctas bytes"),
    # By JAX there is no `context_parallel` beside it.
    "training": _kind("ms", f"{_RING} exchange rounds what", "context_parallel framework"),
}


def row(
    name: str,
    params: dict[str, Any],
    ours: float,
    peers: dict[str, float] | None = None,
    sustained: Figures | None = None,
) -> Row:
    """A row of a kind, in the kind's unit.

    Raises
    ------
    ValueError
        As of :func:`checked`.
    """
    if name not in KINDS:
        raise ValueError(f"name: got {name!r}, must be one of {', '.join(KINDS)}")
    made = Row(name=name, params=params, unit=KINDS[name].unit, ours=ours, peers=peers or {})
    return checked(made if sustained is None else made | {"sustained": sustained})


def checked(one: Any) -> Row:
    """The row, if it is one of its kind.

    Raises
    ------
    ValueError
        If its kind, unit, params or figures are not as `KINDS` says.
    """
    kind = KINDS.get(one["name"])
    if kind is None:
        raise ValueError(f"name: got {one['name']!r}, must be one of {', '.join(KINDS)}")
    if one["unit"] != kind.unit:
        raise ValueError(f"{one['name']}: unit: got {one['unit']!r}, must be {kind.unit!r}")
    names = one["params"].keys()
    if not kind.params <= names <= kind.params | kind.may:
        must = sorted(kind.params) + [f"{name} (or not)" for name in sorted(kind.may)]
        raise ValueError(f"{one['name']}: params: got {sorted(names)}, must be {must}")
    for figures in (one, one.get("sustained", one)):
        of = {"ours": figures["ours"], **figures["peers"]}
        wrong = {what: x for what, x in of.items() if type(x) not in (int, float)}
        if wrong:
            raise ValueError(f"{one['name']}: figures: got {wrong}, must be numbers")
    made: Row = one
    return made


def line(one: Row) -> str:
    """A row for people."""
    peers = "".join(f", {name} {value:.4g}" for name, value in one["peers"].items())
    of = " ".join(f"{name}={value}" for name, value in one["params"].items())
    return f"{one['name']:15} {one['ours']:.4g} {one['unit']}{peers}: {of}"


def slug(card: str) -> str:
    """A card's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def machine() -> dict[str, str]:
    """Card, driver and CUDA version, for the head of a file of results."""
    from baracuda_kernels._core import _info  # pages are made without the package

    devices = _info.devices()
    if not devices:
        raise SystemExit("evidence needs a CUDA device, and a build with CUDA")
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    runtime = _info.build_info()["cuda_runtime_version"]
    cuda = f"{runtime // 1000}.{runtime % 1000 // 10}"
    return {"card": devices[0]["name"], "driver": driver, "cuda": cuda}


def now() -> str:
    """Date and time, for the head of a file of results."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read(path: Path) -> Result:
    """A file of results, every row of it checked."""
    result: Result = json.loads(path.read_text())
    for one in result["rows"]:
        checked(one)
    return result


def write(path: Path, data: Any) -> None:
    """Write a file of results with one row to a line, so that changes read well."""
    head = {name: value for name, value in data.items() if name != "rows"}
    lines = ",\n".join("  " + json.dumps(row) for row in data["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head, indent=1)[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n")


def write_of_ranks(
    folder: Path, prefix: str, ranks: int, source_hash: str, rows: list[Row]
) -> Path:
    """Write `folder`/`prefix`<ranks>x-<card>.json, the results of several GPUs."""
    head: dict[str, Any] = {"schema": SCHEMA, "ranks": ranks, **machine()}
    path = folder / f"{prefix}{ranks}x-{slug(head['card'])}.json"
    write(path, {**head, "source_hash": source_hash, "date": now(), "rows": rows})
    return path
