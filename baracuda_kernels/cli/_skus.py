"""``skus``: every kernel that the library knows, with its guarantees."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from baracuda_kernels.cli._console import json_option, out_console, print_json


@click.command(short_help="All kernels, and what they guarantee.")
@click.option("--op", help="Op by its registered name.")
@click.option("--direction", help="forward or backward.")
@click.option("--element", help="Element kind, such as bf16.")
@click.option("--arch", help="Architecture, such as sm80 or host.")
@click.option("--backend", help="Backend, such as bespoke.")
@click.option("--math-precision", help="Precision of the products, such as f32.")
@click.option("--deterministic/--not-deterministic", default=None, help="Run-to-run equality.")
@json_option
def skus(as_json: bool, **filters: Any) -> None:
    """Table of all kernels (SKUs) and what they guarantee. Needs no GPU.

    It lists what the library has; `info` says what runs here. family: the kernel's name in
    `explain`. arch: the oldest GPU that the kernel runs on (with an A at the end: the only one), or
    HOST. backend: where the kernel is from; BESPOKE and HOST are this library's own. math:
    precision of the products. accumulator: type of the sums. deterministic: every sum has a fixed
    order. bit-stable: the same inputs give the same bits on the same card, world size and rank.
    """
    from baracuda_kernels import registry

    given = {name: value for name, value in filters.items() if value is not None}
    op = given.pop("op", None)
    wanted = registry.ops() if op is None else [registry.get(op).name]
    found = [row for row in registry.named_skus(**given) if row[0] in wanted]
    if as_json:
        rows = [{"op_name": name, "family": family, **sku.to_dict()} for name, family, sku in found]
        print_json({"skus": rows})
        return
    table = Table("op", "direction", "family", "element", "arch", "backend", "math", "accumulator")
    table.add_column("deterministic")
    table.add_column("bit-stable on the same hardware")
    for name, family, sku in found:
        table.add_row(name, sku.direction.name.lower(), family, *_cells(sku))
    out_console().print(table)


def _cells(sku: Any) -> list[str]:
    guarantee = sku.precision_guarantee
    return [
        sku.element.name,
        sku.arch.name,
        sku.backend.name,
        guarantee.math_precision.name,
        guarantee.accumulator.name,
        "yes" if guarantee.deterministic else "no",
        "yes" if guarantee.bit_stable_on_same_hardware else "no",
    ]
