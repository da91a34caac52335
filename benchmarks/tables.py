"""Tables of docs/performance.md: columns as data, and a line for each group of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.rows import Figures, Row

# The rows of one line of a table.
Group = Sequence[Row]
Cell = Callable[[Group], Any]

# Files of before there was a choice of exchange have NCCL.
_IF_ABSENT = {"exchange": "nccl", "devices": 1}
_LAYOUTS = ("zigzag", "striped", "contiguous")


class Section(NamedTuple):
    """A heading, what the figures are, and a table with a line for each group of rows.

    Columns are parted by ", ", each "heading=what" or what it is headed: a param, two of them as
    "heads/kv_heads", or a figure with its format and what to divide it by, "ours .1f 1e6". Figures:
    "ours", a peer by its name, "ours:peer" and "peer:ours" for ratios, "%peer" in % of ours; with
    "@1" behind it of the group's second row, with "~" before it sustained before burst. A dash is
    what is absent. `cells` has the columns that are more than that, by heading.
    """

    title: str
    text: str
    columns: str
    groups: Callable[[Group], Iterable[Group]] = zip  # a line for each row
    cells: dict[str, Cell] = {}  # noqa: RUF012 - a named tuple's default is shared, and not written to

    def of(self, rows: Group) -> str:
        """Its Markdown."""
        text = f"\n### {self.title}\n" if self.title else ""
        text += f"\n{self.text}\n\n" if self.text else "\n"
        cells: dict[str, Cell] = {}
        for column in self.columns.split(", "):
            head, _, what = column.rpartition("=")
            cells[head or what] = self.cells.get(column) or _cell(what)
        lines = [[cell(of) for cell in cells.values()] for of in self.groups(rows)]
        table = [[*cells], ["---"] * len(cells), *lines]
        return text + "".join("| " + " | ".join(map(str, line)) + " |\n" for line in table)


def _cell(what: str) -> Cell:
    figure, _, form = what.partition(" ")
    if not form:
        return lambda group: _param(group[0], what)
    spec, *per = form.split()
    name, _, at = figure.removeprefix("~").partition("@")

    def cell(group: Group) -> str:
        if len(group) <= int(at or 0):
            return "–"
        row = group[int(at or 0)]
        burst = _number(row, name, spec, *per)
        if figure[0] != "~" or "sustained" not in row:
            return burst
        return f"{_number(row['sustained'], name, spec)} / {burst}"

    return cell


def _param(row: Row, name: str) -> Any:
    p = row["params"]
    if "/" in name:
        return "/".join(str(p[part]) for part in name.split("/"))
    value = p.get(name, _IF_ABSENT.get(name, "–"))
    return ("no", "yes")[value] if isinstance(value, bool) else value


def _number(of: Figures | Row, figure: str, spec: str, per: str = "1") -> str:
    found = {**of["peers"], "ours": of["ours"]}
    try:
        if figure.startswith("%"):
            return f"{100 * found[figure[1:]] / found['ours']:{spec}}"
        above, _, below = figure.partition(":")
        return f"{found[above] / (found[below] if below else float(per)):{spec}}"
    except KeyError:
        return "–"


def by(*names: str) -> Callable[[Group], list[Group]]:
    """Groups of the rows that agree in these params, in the order of each's first."""

    def groups(rows: Group) -> list[Group]:
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            found.setdefault(tuple(row["params"].get(name) for name in names), []).append(row)
        return list(found.values())

    return groups


def by_way(rows: Group) -> list[Group]:
    """The rows of each ring across GPUs: balanced layouts, causal problems, copy engines first."""

    def of(group: Group) -> tuple[Any, ...]:
        p, by_peer = group[0]["params"], exchange(group[0]) == "peer"
        return p["ranks"], p["heads"], p["chunk"], _LAYOUTS.index(p["layout"]), not p["causal"], not by_peer

    return sorted(by("ranks", "heads", "chunk", "layout", "causal", "exchange")(rows), key=of)


def exchange(row: Row) -> str:
    """What moves the chunks."""
    return str(_param(row, "exchange"))


def ring_flops(p: dict[str, Any]) -> float:
    """Floating-point operations of all ranks of a ring together, by the params of its row."""
    total = p["chunk"] * p["ranks"]
    every: float = 4.0 * p["heads"] * total * total * p["head_dim"]
    return every / 2 if p["causal"] else every


def tflops(row: Row, ms: float) -> float:
    """Of a `forward` or `backward` row, a call of which takes `ms`."""
    p = row["params"]
    flops: float = 4.0 * p["batch"] * p["heads"] * p["query_len"] * p["key_len"] * p["head_dim"]
    if row["name"] == "backward":
        flops *= 2.5
    return (flops / 2 if p["causal"] else flops) / ms / 1e9
