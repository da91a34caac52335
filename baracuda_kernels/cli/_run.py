"""``run``: ring attention of a file's q, k, v over virtual ranks in this process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels.cli._console import ProgressBar, json_option, print_json
from baracuda_kernels.cli._tensor_file import (
    check_storable,
    check_writable,
    read_tensors,
    write_tensors,
)
from baracuda_kernels.sharding import MAX_RANKS

ranks_type = click.IntRange(1, MAX_RANKS)
LAYOUTS = tuple(layout.name.lower() for layout in SequenceLayout)


@click.command(short_help="Attention of a file's q, k, v over virtual ranks.")
@click.argument("qkv", type=click.Path(path_type=Path))
@click.option("--ranks", type=ranks_type, required=True, help="Virtual ranks, P.")
@click.option("--causal", is_flag=True, help="Row i sees the keys up to i.")
@click.option("--scale", type=float, help="Factor on q·k. [default: 1/sqrt(D)]")
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default="contiguous",
    show_default=True,
    help="How rows are dealt to ranks.",
)
@click.option("--device", default="host", show_default=True, help="host (or cpu), cuda or cuda:N.")
@click.option(
    "--timeout", type=float, help="Seconds that a run on the host may take. [default: no limit]"
)
@click.option("--check", is_flag=True, help="Compare with attention in float64 (slow).")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="File to write y and lse to: .safetensors or .npz.")  # fmt: skip
@json_option
def run(
    qkv: Path,
    ranks: int,
    causal: bool,
    scale: float | None,
    layout: str,
    device: str,
    timeout: float | None,
    check: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Attention of q, k, v in QKV over a ring of virtual ranks; writes y and lse.

    QKV is a .safetensors or .npz file with q [B,H,S,D] and k, v [B,Hkv,S,D]. The sequence is
    sharded over the ranks, which take turns in this process, and the outputs are gathered.
    --check shows the error of y and lse, and beside it what merely rounding the exact y to the
    dtype would cost.
    """
    from baracuda_kernels.local_ring import run_with_plan

    check_writable(output, source=qkv)
    tensors = read_tensors(qkv, ("q", "k", "v"))
    check_storable(output, *tensors.values())
    start = time.perf_counter()
    with ProgressBar(f"{ranks} ranks, ring steps", as_json) as bar:
        y, lse, plan = run_with_plan(
            **tensors,
            world_size=ranks,
            is_causal=causal,
            scale=scale,
            sequence_layout=layout,
            device=device,
            timeout=timeout,
            progress=bar.update,
        )
    seconds = time.perf_counter() - start
    write_tensors(output, {"y": y, "lse": lse})

    result: dict[str, Any] = {
        "input": str(qkv),
        "output": str(output),
        "shapes": {"y": list(y.shape), "lse": list(lse.shape)},
        "dtype": str(y.dtype),
        "ranks": ranks,
        "causal": causal,
        "layout": layout,
        "device": device,
        "family": plan.family,
        "sku": plan.sku.to_dict(),
        "seconds": seconds,
    }
    if check:
        result["check"] = _check(tensors, y, lse, plan.descriptor)
    if as_json:
        print_json(result)
    else:
        _print_text(result, plan.sku)


def _check(
    tensors: dict[str, np.ndarray], y: np.ndarray, lse: np.ndarray, descriptor: Any
) -> dict[str, dict[str, float]]:
    from baracuda_kernels import reference

    exact_y, exact_lse = reference.attention(
        *(tensors[name] for name in ("q", "k", "v")),
        scale=descriptor.scale,
        is_causal=descriptor.is_causal,
    )
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = exact_y.astype(y.dtype)
    return {
        "y": reference.error_of(y, exact_y),
        "lse": reference.error_of(lse, exact_lse),
        # The error of rounding the exact answer to y's dtype.
        "rounding": reference.error_of(rounded, exact_y),
    }


def _print_text(result: dict[str, Any], sku: Any) -> None:
    shape = "x".join(map(str, result["shapes"]["y"]))
    causal = "causal, " if result["causal"] else ""
    click.echo(
        f"{result['output']}: y {shape} {result['dtype']} and lse, {causal}{result['layout']}, "
        f"{result['ranks']} ranks on {result['device']}, {result['seconds']:.3f} s"
    )
    math = sku.precision_guarantee.math_precision.name
    click.echo(f"kernel: {result['family']}, {math} products")
    if "check" in result:
        click.echo("error against attention in float64:")
        exact = f"rounding to {result['dtype']} alone"
        for name, label in (("y", "y"), ("lse", "lse"), ("rounding", exact)):
            error = result["check"][name]
            click.echo(f"  {label + ':':28}rms {error['rms']:.3e}   max {error['max']:.3e}")
