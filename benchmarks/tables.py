"""Tables of docs/performance.md: columns as data, and a line for each group of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from benchmarks.rows import Row

# The rows of one line of a table.
Group = Sequence[Row]
Cell = Callable[[Group], Any]

LAYOUTS = ("zigzag", "striped", "contiguous")


def table(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """Markdown."""
    columns = list(head)
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


class Section(NamedTuple):
    """A heading, what the figures are, and a table with a line for each group of rows."""

    title: str
    text: str
    columns: dict[str, Cell]
    groups: Callable[[Group], Iterable[Group]] = lambda rows: [[row] for row in rows]

    def of(self, rows: Group) -> str:
        """Its Markdown."""
        text = f"\n### {self.title}\n" if self.title else ""
        text += f"\n{self.text}\n\n" if self.text else "\n"
        lines = ([cell(of) for cell in self.columns.values()] for of in self.groups(rows))
        return text + table(self.columns, lines)


def params(text: str) -> dict[str, Cell]:
    """Columns of params, parted by ", ": "D=head_dim" is head_dim's, headed D."""
    named = (part.partition("=") for part in text.split(", "))
    return {head: _param(name or head) for head, _, name in named}


def _param(name: str) -> Cell:
    """A param, of "heads/kv_heads" both; a dash where it is not given."""

    def cell(group: Group) -> Any:
        p = group[0]["params"]
        if "/" in name:
            return "/".join(str(p[part]) for part in name.split("/"))
        value = p.get(name, "–")
        return ("no", "yes")[value] if isinstance(value, bool) else value

    return cell


def figure(spec: str, of: Callable[[float, dict[str, float]], float], at: int = 0) -> Cell:
    """A number made of one row's figure and its peers; a dash where a peer is absent."""

    def cell(group: Group) -> str:
        try:
            return f"{of(group[at]['ours'], group[at]['peers']):{spec}}"
        except (KeyError, IndexError):
            return "–"

    return cell


def ours(spec: str = ".3f", per: float = 1) -> Cell:
    """Our figure."""
    return figure(spec, lambda ours, _: ours / per)


def peer(name: str, spec: str = ".3f", per: float = 1) -> Cell:
    """A peer's figure."""
    return figure(spec, lambda _, peers: peers[name] / per)


def over(name: str, spec: str = ".3f") -> Cell:
    """Ours over a peer's."""
    return figure(spec, lambda ours, peers: ours / peers[name])


def times(name: str) -> Cell:
    """How many times as long a peer takes."""
    return figure(".2f", lambda ours, peers: peers[name] / ours)


def percent(name: str, at: int = 0) -> Cell:
    """A peer's figure in % of ours."""
    return figure(".1f", lambda ours, peers: 100 * peers[name] / ours, at)


def by(*names: str) -> Callable[[Group], list[Group]]:
    """Groups of the rows that agree in these params, in the order of each's first."""

    def groups(rows: Group) -> list[Group]:
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            found.setdefault(tuple(row["params"].get(name) for name in names), []).append(row)
        return list(found.values())

    return groups


def by_problem(rows: Group) -> list[Group]:
    """The rows of each ring across GPUs: balanced layouts and causal problems first."""

    def of(row: Row) -> tuple[Any, ...]:
        p = row["params"]
        return p["ranks"], p["chunk"], LAYOUTS.index(p["layout"]), not p["causal"]

    return [list(group) for _, group in groupby(sorted(rows, key=of), of)]


def exchange(row: Row) -> str:
    """What moves the chunks. Files of before there was a choice have NCCL."""
    return str(row["params"].get("exchange", "nccl"))


def by_way(rows: Group) -> list[Group]:
    """The same for each thing that moves the chunks, by peer first."""
    return [
        list(group)
        for problem in by_problem(rows)
        for _, group in groupby(sorted(problem, key=exchange, reverse=True), exchange)
    ]


def ring_flops(p: dict[str, Any]) -> float:
    """Floating-point operations of all ranks of a ring together, by the params of its row."""
    total = p["chunk"] * p["ranks"]
    every = 4.0 * p["heads"] * total * total * p["head_dim"]
    return every / 2 if p["causal"] else every


def tflops(row: Row, ms: float) -> float:
    """Of a `forward` or `backward` row, a call of which takes `ms`."""
    p = row["params"]
    flops = 4 * p["batch"] * p["heads"] * p["query_len"] * p["key_len"] * p["head_dim"]
    if row["name"] == "backward":
        flops *= 2.5
    return (flops / 2 if p["causal"] else flops) / ms / 1e9
