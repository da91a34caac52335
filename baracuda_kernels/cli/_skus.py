"""``skus``: every kernel that the library knows, with its guarantees."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from baracuda_kernels.cli._console import json_option, out_console, print_json


@click.command()
@click.option("--op", help="Op by its registered name, such as ring_attention.")
@click.option("--element", help="Element kind, such as bf16.")
@click.option("--arch", help="Architecture, such as sm80 or host.")
@click.option("--backend", help="Backend, such as bespoke.")
@click.option("--math-precision", help="Precision of the products, such as f32.")
@click.option("--deterministic/--not-deterministic", default=None, help="Run-to-run equality.")
@json_option
def skus(as_json: bool, **filters: Any) -> None:
    """Table of all kernels (SKUs) and what they guarantee. Needs no GPU."""
    from baracuda_kernels import registry

    given = {name: value for name, value in filters.items() if value is not None}
    op = given.pop("op", None)
    ops = registry.ops() if op is None else [registry.get(op).name]
    found = [(name, sku) for name in ops for sku in registry.skus(op=name, **given)]
    if as_json:
        print_json({"skus": [{"op_name": name, **sku.to_dict()} for name, sku in found]})
        return
    table = Table()
    for column in ("op", "element", "arch", "backend", "math", "accumulator"):
        table.add_column(column)
    table.add_column("deterministic")
    table.add_column("bit-stable on the same hardware")
    for name, sku in found:
        table.add_row(name, *sku_cells(sku))
    out_console().print(table)


def sku_cells(sku: Any) -> list[str]:
    """A SKU's fields as the cells of a table's row, without its op."""
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
