"""``explain``: which kernel a problem gets on an architecture, and why not the others."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from baracuda_kernels.cli._console import json_option, out_console, print_json
from baracuda_kernels.cli._run import LAYOUTS
from baracuda_kernels.cli._sample import dtype_choice


@click.command()
@click.option(
    "--op",
    type=click.Choice(["ring_attention", "flash_sdpa"]),
    default="ring_attention",
    show_default=True,
)
@click.option("--batch", type=int, default=1, show_default=True, help="B.")
@click.option("--heads", type=int, default=8, show_default=True, help="H.")
@click.option("--kv-heads", type=int, help="Hkv. [default: H]")
@click.option("--query-len", type=int, default=4096, show_default=True, help="Rows per rank.")
@click.option("--key-len", type=int, help="Keys per rank. [default: the rows]")
@click.option("--head-dim", type=int, default=128, show_default=True, help="D.")
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True)
@click.option("--causal", is_flag=True)
@click.option("--scale", type=float, help="[default: 1/sqrt(D)]")
@click.option("--layout", type=click.Choice(LAYOUTS), default="contiguous", show_default=True)
@click.option("--arch", help="host, or as in sm_90 or 9.0. [default: this machine's]")
@json_option
def explain(as_json: bool, arch: str | None, **problem: Any) -> None:
    """Which kernel a problem gets on an architecture, and why not the others. Needs no GPU."""
    from baracuda_kernels import registry

    explanation = registry.explain(_descriptor(**problem), arch=arch)
    if as_json:
        print_json(explanation.to_dict())
        return
    table = Table("kernel", "", "why", title=f"{explanation.op} on {explanation.arch}")
    for candidate in explanation.candidates:
        if candidate is explanation.chosen:
            verdict = "selected"
        else:
            verdict = "fits, but comes later" if candidate.accepted else "refused"
        table.add_row(candidate.family, verdict, candidate.reason)
    out_console().print(table)
    if explanation.chosen is None:
        click.echo("no kernel serves this problem")


def _descriptor(
    op: str,
    batch: int,
    heads: int,
    kv_heads: int | None,
    query_len: int,
    key_len: int | None,
    head_dim: int,
    dtype: str,
    causal: bool,
    scale: float | None,
    layout: str,
) -> Any:
    from baracuda_kernels import (
        ElementKind,
        FlashSdpaDescriptor,
        RingAttentionDescriptor,
        SequenceLayout,
    )

    key_len = query_len if key_len is None else key_len
    common = {
        "scale": scale,
        "is_causal": causal,
        "element": ElementKind.parse(dtype),
        "num_kv_heads": heads if kv_heads is None else kv_heads,
    }
    if op == "flash_sdpa":
        return FlashSdpaDescriptor(batch, heads, query_len, key_len, head_dim, **common)
    layout_member = SequenceLayout.parse(layout)
    return RingAttentionDescriptor(
        batch, heads, query_len, key_len, head_dim, sequence_layout=layout_member, **common
    )
