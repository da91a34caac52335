"""``plan``: scale on paper: memory, bytes, time and efficiency of a ring, and what to choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from baracuda_kernels._core._communicator import DEFAULT_MAX_CTAS
from baracuda_kernels.cli._console import FileProblemError, json_option, out_console, print_json
from baracuda_kernels.cli._plot import check_plot
from baracuda_kernels.cli._plot_plan import draw_plot
from baracuda_kernels.cli._run import LAYOUTS
from baracuda_kernels.cli._sample import dtype_choice

_SUFFIXES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class SizeType(click.ParamType):
    """A number of tokens: an integer, or a number with k, M or G for 2**10, 2**20 and 2**30."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; a click error if it is none, or no whole one."""
        if isinstance(value, int):
            return value
        text = str(value).strip().lower()
        suffix = text[-1:] if text[-1:] in _SUFFIXES else ""
        try:
            size = float(text[: len(text) - len(suffix)]) * _SUFFIXES[suffix]
        except ValueError:
            self.fail(f"{value!r} is no size; sizes are like 4096, 128k, 1.5M", param, ctx)
        if not size.is_integer() or size < 1:  # also inf and nan
            self.fail(f"{value!r} is no whole number of tokens, 1 or more", param, ctx)
        return int(size)


@click.command()
@click.option(
    "--seq",
    type=SizeType(),
    required=True,
    help="Tokens of the whole sequence; k, M, G are 2^10, 2^20, 2^30.",
)
@click.option("--ranks", type=click.IntRange(1), required=True, help="GPUs of the ring, P.")
@click.option("--heads", type=click.IntRange(1), required=True, help="H.")
@click.option("--kv-heads", type=click.IntRange(1), help="Hkv; divides H. [default: H]")
@click.option("--head-dim", type=click.IntRange(1), required=True, help="D.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="B.")
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True)
@click.option("--causal", is_flag=True, help="Row i sees the keys up to i.")
@click.option(
    "--link-gbps",
    type=float,
    required=True,
    help="Gbit/s from a GPU to the next, in one direction.",
)
@click.option(
    "--latency-us",
    type=float,
    default=10.0,
    show_default=True,
    help="Microseconds of an exchange besides its bytes.",
)
@click.option("--layout", type=click.Choice(LAYOUTS), help="Only this one. [default: all]")
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    help="Evidence file with forward and ring_tax rows. [default: what is known of --arch]",
)
@click.option("--tflops", type=float, help="TFLOPS to reckon with, instead of measured ones.")
@click.option("--arch", default="sm_90", show_default=True, help="GPU, as in sm_80 or 9.0.")
@click.option("--sms", type=int, help="SMs of a GPU. [default: as known of --arch]")
@click.option(
    "--sm-margin",
    type=int,
    default=DEFAULT_MAX_CTAS,
    show_default=True,
    help="SMs left to the exchange (max_ctas of the communicator).",
)
@click.option("--memory-gib", type=float, help="Of a GPU. [default: as known of --arch]")
@click.option(
    "--min-efficiency",
    type=float,
    default=0.8,
    show_default=True,
    help="Fewer ranks are advised where more would run below it.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it over ranks (png, svg, pdf).")
@json_option
def plan(
    as_json: bool,
    arch: str,
    measured: Path | None,
    tflops: float | None,
    layout: str | None,
    min_efficiency: float,
    plot: Path | None,
    **given: Any,
) -> None:
    """What a ring of GPUs needs, how long it takes, and which setting to choose. Needs no GPU.

    A model, not a measurement: docs/scaling.md has its formulas and limits.
    """
    from baracuda_kernels import scaling

    if measured is not None and tflops is not None:
        raise click.UsageError("give --measured or --tflops, not both")
    if plot is not None:
        check_plot(plot)
    own = {name: given.pop(name) for name in ("sms", "memory_gib")}
    names = ("seq", "ranks", "heads", "kv_heads", "head_dim", "batch", "dtype", "causal")
    problem = scaling.RingProblem(**{name: given.pop(name) for name in names})
    family = _family(problem, arch)
    own = _gpu(arch, own, measured is not None or tflops is not None)
    rates = _rates(family, problem, arch, own["sms"], measured, tflops)
    machine = scaling.Machine(rates=rates, **own, **given)
    layouts = scaling.LAYOUTS if layout is None else (layout,)
    result = scaling.plan(problem, machine, layouts, min_efficiency=min_efficiency)
    if plot is not None:
        draw_plot(plot, result)
    if as_json:
        drawn = {} if plot is None else {"plot": str(plot)}
        print_json({"family": family, **result.to_dict(), **drawn})
        return
    _print_text(family, result)
    if plot is not None:
        click.echo(f"plot: {plot}")


def _family(problem: Any, arch: str) -> str:
    """The kernel family that a rank gets; its typed refusal where none serves the problem."""
    from baracuda_kernels import ElementKind, RingAttentionDescriptor, registry

    descriptor = RingAttentionDescriptor(
        problem.batch,
        problem.heads,
        problem.chunk,
        problem.chunk,
        problem.head_dim,
        is_causal=problem.causal,
        element=ElementKind.parse(problem.dtype),
        num_kv_heads=problem.hkv,
    )
    return str(registry.explain(descriptor, arch=arch).require().family)


def _gpu(arch: str, own: dict[str, Any], has_rates: bool) -> dict[str, Any]:
    """SMs and memory of a GPU, given or known; refused where the arch has never been measured."""
    from baracuda_kernels import UnsupportedError, scaling

    card = scaling.find_card(arch)
    if card is not None:
        return {k: getattr(card, k) if v is None else v for k, v in own.items()}
    missing = [] if has_rates else ["--tflops or --measured"]
    missing += [f"--{k.replace('_', '-')}" for k, v in own.items() if v is None]
    if missing:
        raise UnsupportedError(
            f"arch: got {arch}, must be one that was measured "
            f"({', '.join(card.arch for card in scaling.cards())}), or give {', '.join(missing)}"
        )
    return own


def _rates(
    family: str, problem: Any, arch: str, sms: int, measured: Path | None, tflops: float | None
) -> Any:
    from baracuda_kernels import scaling

    if tflops is not None:
        return scaling.ComputeRates.constant(tflops)
    of = (family, problem.dtype, problem.head_dim, arch)
    if measured is None:
        return scaling.default_rates(*of)
    try:
        evidence = json.loads(measured.read_text())
    except (OSError, ValueError) as error:
        raise FileProblemError(f"{measured}: {error}") from error
    return scaling.measured_rates(evidence, *of, sms)


def _print_text(family: str, result: Any) -> None:
    from baracuda_kernels.scaling import StepForecast

    problem, machine = result.problem, result.machine
    console = out_console()
    mask = "causal" if problem.causal else "not causal"
    click.echo(
        f"{problem.seq} tokens, {problem.chunk} on each of {problem.ranks} rank(s); "
        f"B {problem.batch}, H {problem.heads}/{problem.hkv}, D {problem.head_dim}, "
        f"{problem.dtype}, {mask}; kernel {family}"
    )
    for source in machine.rates.sources:
        click.echo(f"rates: {source}")
    click.echo(
        f"at this chunk: {machine.rates.tflops(problem.chunk):.0f} TFLOPS, causal "
        f"{machine.rates.tflops(problem.chunk, causal=True):.0f}"
    )

    memory = Table("memory of a rank, MiB", "q", "y", "lse", "k, v", "scratch A", "scratch B")
    memory.add_column("accumulator")
    memory.add_column("total")
    for label, m in (("staged", result.staged), ("in place", result.in_place)):
        parts = (m.q, m.y, m.lse, m.kv, m.scratch_a, m.scratch_b, m.accumulator, m.total)
        memory.add_row(label, *(f"{part / 2**20:.1f}" for part in parts))
    console.print(memory)

    if problem.ranks > 1:
        click.echo(
            f"exchange: {problem.bytes_per_hop / 2**20:.1f} MiB a hop, "
            f"{result.exchange * 1e3:.3f} ms; {problem.bytes_sent / 2**30:.2f} GiB sent by a rank "
            f"in {problem.ranks - 1} hops"
        )
    times = Table("layout", "step 0 ms", "later step ms", "exposed ms", "total ms", "balance")
    times.add_column("efficiency")
    times.add_column("TFLOPS/GPU")
    times.add_column("chunk that hides the exchange")
    for f in result.forecasts:
        later: list[StepForecast] = list(f.steps[1:])
        hides = result.hiding_chunks[f.layout.name.lower()]
        times.add_row(
            f.layout.name.lower(),
            f"{f.steps[0].slowest * 1e3:.3f}",
            f"{sum(s.slowest for s in later) / len(later) * 1e3:.3f}" if later else "–",
            f"{f.exposed * 1e3:.3f}",
            f"{f.seconds * 1e3:.3f}",
            f"{f.balance:.3f}",
            f"{f.efficiency:.1%}",
            f"{f.tflops_per_gpu:.0f}",
            "–" if hides is None else str(hides),
        )
    console.print(times)
    advice = result.recommendation
    where = "one GPU" if advice.ranks == 1 else f"{advice.ranks} ranks"
    click.echo(f"recommended: {advice.layout.name.lower()} on {where}: {advice.reason}")
