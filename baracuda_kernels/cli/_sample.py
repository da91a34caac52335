"""``sample``: writes random q, k, v."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from baracuda_kernels import _local_memory
from baracuda_kernels.cli._console import SizeType, check_fits_memory, json_option, print_json
from baracuda_kernels.cli._tensor_file import check_storable, check_writable, write_tensors

# The dtypes of q, k and v, by the names of elements in lower case.
DTYPES = {
    element.name.lower(): _local_memory.numpy_dtype(name)
    for name, element in _local_memory.DTYPES.items()
}
dtype_choice = click.Choice(list(DTYPES))


@click.command(short_help="Write random q, k, v to a file, to try things on.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="File to write: .safetensors or .npz.")  # fmt: skip
@click.option(
    "--seq", type=SizeType(least=0), default=4096, show_default=True,
    help="Tokens, S; k, M, G are 2^10, 2^20, 2^30."
)
@click.option("--batch", type=click.IntRange(0), default=1, show_default=True, help="Sequences, B.")
@click.option("--heads", type=click.IntRange(1), default=8, show_default=True,
              help="Query heads, H.")  # fmt: skip
@click.option(
    "--kv-heads", type=click.IntRange(1), help="Heads of K and V, Hkv; divides H. [default: H]"
)
@click.option("--head-dim", type=click.IntRange(1), default=64, show_default=True,
              help="Elements of a head, D.")  # fmt: skip
@click.option("--dtype", type=dtype_choice, default="f32", show_default=True,
              help="Element type of q, k and v.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Seed of the random numbers.")  # fmt: skip
@json_option
def sample(
    output: Path,
    seq: int,
    batch: int,
    heads: int,
    kv_heads: int | None,
    head_dim: int,
    dtype: str,
    seed: int,
    as_json: bool,
) -> None:
    """Write unit-normal q [B,H,S,D] and k, v [B,Hkv,S,D] to a .safetensors or .npz file."""
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise click.BadParameter(
            f"got {kv_heads}, must divide the {heads} heads", param_hint="kv-heads"
        )
    check_writable(output)
    check_storable(output, np.empty(0, DTYPES[dtype]))
    check_sample(batch, heads + 2 * kv_heads, seq, head_dim, dtype)
    random = np.random.default_rng(seed)
    tensors = {
        name: random.standard_normal((batch, h, seq, head_dim)).astype(DTYPES[dtype])
        for name, h in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    }
    write_tensors(output, tensors)
    shapes = {name: list(x.shape) for name, x in tensors.items()}
    if as_json:
        print_json({"output": str(output), "dtype": dtype, "seed": seed, "shapes": shapes})
    else:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        click.echo(f"{output}: {listed} in {dtype}, seed {seed}")


def check_sample(batch: int, heads: int, rows: int, head_dim: int, dtype: str) -> None:
    """MemoryError if random q, k and v, with `heads` heads in all, do not fit the machine's memory."""
    check_fits_memory("q, k and v", batch * heads * rows * head_dim * DTYPES[dtype].itemsize)
