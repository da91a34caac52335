"""``predict``: memory, bytes, time and efficiency of a ring, and a recommendation."""

from __future__ import annotations

import json
import textwrap
from operator import attrgetter
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from baracuda_kernels._core._nccl_options import DEFAULT_MAX_CTAS
from baracuda_kernels.cli._console import (
    FileProblemError,
    SizeType,
    json_option,
    out_console,
    print_json,
)
from baracuda_kernels.cli._plot import check_plot
from baracuda_kernels.cli._plot_comparison import draw_plot
from baracuda_kernels.cli._run import LAYOUTS
from baracuda_kernels.cli._sample import dtype_choice
from baracuda_kernels.predict._units import duration, size


@click.command(short_help="A ring of GPUs on paper: memory, time, advice.")
@click.option(
    "--seq",
    type=SizeType(),
    required=True,
    help="Tokens of the whole sequence; k, M, G are 2^10, 2^20, 2^30.",
)
@click.option("--ranks", type=click.IntRange(1), required=True, help="GPUs of the ring, P.")
@click.option("--heads", type=click.IntRange(1), required=True, help="Query heads, H.")
@click.option(
    "--kv-heads", type=click.IntRange(1), help="Heads of K and V, Hkv; divides H. [default: H]"
)
@click.option("--head-dim", type=click.IntRange(1), required=True, help="Elements of a head, D.")
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences, B."
)
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True,
              help="Element type of q, k, v and y.")  # fmt: skip
@click.option("--causal", is_flag=True, help="Row i sees the keys up to i.")
@click.option("--training", is_flag=True, help="A forward and a backward. [default: a forward]")
@click.option(
    "--link-gbps",
    type=float,
    required=True,
    help="Gbit/s from a GPU to the next, one way; about 3600 by NVLink of an H100.",
)
@click.option(
    "--exchange",
    type=click.Choice(["nccl", "peer"]),
    default="nccl",
    show_default=True,
    help="What moves the chunks: NCCL's kernels, or inside a host the copy engines.",
)
@click.option(
    "--latency-us",
    type=float,
    help="Microseconds that an exchange takes beside sending its bytes. [default: 10; by peer 20]",
)
@click.option(
    "--layers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Attention layers of the model, for the time of all of them.",
)
@click.option("--layout", type=click.Choice(LAYOUTS), help="Only this one. [default: all]")
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    help="Measurements of your GPU, from benchmarks.evidence. [default: those known of --arch]",
)
@click.option("--tflops", type=float, help="TFLOPS of a GPU to reckon with, instead of measured ones.")
@click.option("--arch", default="sm_90", show_default=True, help="GPU, as in sm_80 or 9.0.")
@click.option("--sms", type=int, help="SMs of a GPU. [default: as known of --arch]")
@click.option(
    "--sm-margin",
    type=int,
    help="SMs left to the exchange (max_ctas of the communicator). "
    f"[default: {DEFAULT_MAX_CTAS}; by peer 0]",
)
@click.option("--memory-gib", type=float, help="Memory of a GPU. [default: as known of --arch]")
@click.option(
    "--min-efficiency",
    type=float,
    default=0.8,
    show_default=True,
    help="Advise fewer ranks where more would be less efficient than this (1: ideal).",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it over ranks (png, svg, pdf).")
@json_option
def predict(
    as_json: bool,
    arch: str,
    measured: Path | None,
    tflops: float | None,
    layers: int,
    layout: str | None,
    min_efficiency: float,
    plot: Path | None,
    training: bool,
    **given: Any,
) -> None:
    """What a ring of GPUs needs, how long it takes, and which setting to choose.

    It needs no GPU, but a build with the CUDA kernels. All figures are of one attention layer's
    forward pass, with --training of its forward and backward; --layers adds the time of all layers.
    They are computed from a model, not measured: docs/predict.md has an example, the formulas and
    the limits.
    """
    from baracuda_kernels import predict as model

    if measured is not None and tflops is not None:
        raise click.UsageError("give --measured or --tflops, not both")
    if plot is not None:
        check_plot(plot)
    own = {name: given.pop(name) for name in ("sms", "memory_gib")}
    names = ("seq", "ranks", "heads", "kv_heads", "head_dim", "batch", "dtype", "causal")
    problem = model.RingProblem(**{name: given.pop(name) for name in names})
    family = _family(problem, arch)
    own = _gpu(arch, own, measured is not None or tflops is not None)
    rates = _rates(family, problem, arch, own["sms"], measured, tflops)
    if training:
        of_gradients = _family(problem, arch, backward=True)
        given["backward_rates"] = _rates(
            of_gradients, problem, arch, own["sms"], measured, tflops, backward=True
        )
        if of_gradients != family:
            family = f"{family}, of gradients {of_gradients}"
    machine = model.Machine(rates=rates, **own, **given)
    layouts = model.LAYOUTS if layout is None else (layout,)
    result = model.compare(
        problem, machine, layouts, min_efficiency=min_efficiency, training=training,
        scratch=lambda one: _scratch(one, arch),
    )  # fmt: skip
    if plot is not None:
        draw_plot(plot, result)
    if as_json:
        drawn = {} if plot is None else {"plot": str(plot)}
        whole = {
            f.layout.name.lower(): f.seconds * layers for f in result.forecasts
        }  # of all layers
        print_json(
            {"family": family, "layers": layers, **result.to_dict(), "seconds_all_layers": whole,
             **drawn}
        )  # fmt: skip
        return
    _print_text(family, result, layers)
    if plot is not None:
        click.echo(f"plot: {plot}")


def _family(problem: Any, arch: str, *, backward: bool = False) -> str:
    """The kernel family that a rank gets; `UnsupportedError` if none serves the problem."""
    from baracuda_kernels import UnsupportedError, registry
    from baracuda_kernels._core import _info

    if not _info.build_info()["cuda_built"]:
        raise UnsupportedError(
            "predict: this build has no CUDA kernels to ask (made with BARACUDA_CUDA=OFF); "
            "install it without that option, which needs no GPU"
        )
    direction = "BACKWARD" if backward else "FORWARD"
    return str(registry.explain(problem.descriptor, arch, direction=direction).require().family)


def _scratch(problem: Any, arch: str) -> int:
    """Bytes of a backward's scratch; the model's own figure if no kernel serves the problem."""
    from baracuda_kernels import UnsupportedError
    from baracuda_kernels import predict as model

    try:
        return model.backward_scratch(problem, arch)
    except UnsupportedError:
        return model.training_memory(problem).scratch


def _gpu(arch: str, own: dict[str, Any], has_rates: bool) -> dict[str, Any]:
    """SMs and memory of a GPU, given or measured; `UnsupportedError` if a figure is missing."""
    from baracuda_kernels import UnsupportedError
    from baracuda_kernels import predict as model

    card = model.find_card(arch)
    if card is not None:
        return {k: getattr(card, k) if v is None else v for k, v in own.items()}
    missing = [] if has_rates else ["--tflops or --measured"]
    missing += [f"--{k.replace('_', '-')}" for k, v in own.items() if v is None]
    if missing:
        raise UnsupportedError(
            f"arch: got {arch}, must be one that was measured "
            f"({', '.join(card.arch for card in model.cards())}), or give {', '.join(missing)}"
        )
    return own


def _rates(
    family: str,
    problem: Any,
    arch: str,
    sms: int,
    measured: Path | None,
    tflops: float | None,
    *,
    backward: bool = False,
) -> Any:
    from baracuda_kernels import predict as model

    if tflops is not None:
        return model.ComputeRates.constant(tflops)
    of = (family, problem.dtype, problem.head_dim, arch)
    if measured is None:
        return model.default_rates(*of, backward=backward)
    try:
        evidence = json.loads(measured.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise FileProblemError(f"{measured}: {error}") from error
    return model.measured_rates(evidence, *of, sms, backward=backward)


def _print_text(family: str, result: Any, layers: int) -> None:
    problem, rates = result.problem, result.machine.rates
    training = result.training is not None
    passes = "forward and backward" if training else "forward"
    mask = "causal" if problem.causal else "not causal"
    where = "one GPU"
    if problem.ranks > 1:
        where = f"{problem.chunk} on each of {problem.ranks} ranks"
    _say(
        f"One attention layer, {passes}: {problem.seq} tokens, {where}; B {problem.batch}, "
        f"H {problem.heads}/{problem.hkv}, D {problem.head_dim}, {problem.dtype}, {mask}; "
        f"kernel {family}"
    )
    _say_rates("", rates, problem.chunk)
    if training:
        _say_rates("backward ", result.machine.backward_rates, problem.chunk)
    out_console().print(_memory_table(result))
    _say("staged: k and v lie in scratch A to begin with; in place: wherever they are")
    if training:
        out_console().print(_training_table(result.training))
    if problem.ranks > 1:
        way = "NCCL" if result.machine.exchange == "nccl" else "copy engine"
        _say(
            f"exchange by {way}: {size(problem.bytes_per_hop)} a hop, {duration(result.exchange)}; "
            f"{size(problem.bytes_sent)} sent by a rank in {problem.ranks - 1} hops"
        )
        if training:
            _say(_backward_exchange(result))
    out_console().print(_times_table(result, layers))
    _say(_advice(result))


def _say_rates(of: str, rates: Any, chunk: int) -> None:
    for source in rates.sources:
        _say(f"{of}rates: {source}")
    _say(
        f"{of}at this chunk: {rates.tflops(chunk):.0f} TFLOPS, causal "
        f"{rates.tflops(chunk, causal=True):.0f}"
    )


def _backward_exchange(result: Any) -> str:
    """The bytes of the backward's exchanges, and the times of the longest and the last one."""
    exchange = result.to_dict()["backward_exchange"]
    longest, home = max(exchange["seconds"]), exchange["seconds"][-1]
    return (
        f"exchange of the backward: {size(exchange['gradient_bytes_per_hop'])} of sums a hop besides, "
        f"{duration(longest)} at most; {size(exchange['bytes_sent_per_rank'])} sent by a rank; the last "
        f"comes home in {duration(home)} with nothing beside it"
    )


def _say(text: str) -> None:
    click.echo(textwrap.fill(text, 80, subsequent_indent="  ", break_long_words=False))


def _memory_table(result: Any) -> Table:
    """A rank's memory. The layers of a model can share the scratch and the accumulator."""
    table = Table("memory of a rank")
    for head in ("staged", "in place"):
        table.add_column(head, justify="right")
    ways = result.staged, result.in_place
    for label, name in (("q", "q"), ("y", "y"), ("lse", "lse"), ("k, v", "kv"),
                        ("scratch A", "scratch_a"), ("scratch B", "scratch_b"),
                        ("accumulator", "accumulator"), ("total", "total")):  # fmt: skip
        table.add_row(label, *(size(getattr(memory, name)) for memory in ways))
    return table


def _training_table(memory: Any) -> Table:
    """A rank's memory in the backward. Layers can share the scratch and the buffers of sums."""
    table = Table("memory of a rank, backward")
    table.add_column("in place", justify="right")
    for label, name in (("q, k, v, y, lse", "kept"), ("dy, dq, dk, dv", "gradients"),
                        ("scratch A", "scratch_a"), ("scratch B", "scratch_b"),
                        ("sums of dk, dv", "sums"), ("scratch of rows", "scratch"),
                        ("total", "total")):  # fmt: skip
        table.add_row(label, size(getattr(memory, name)))
    return table


def _times_table(result: Any, layers: int) -> Table:
    table = Table("layout")
    for f in result.forecasts:
        table.add_column(f.layout.name.lower(), justify="right")

    def row(label: str, cell: Any) -> None:
        table.add_row(label, *(cell(f) for f in result.forecasts))

    def later(f: Any) -> str:
        steps = f.steps[1 : f.problem.ranks]
        return duration(sum(step.slowest for step in steps) / len(steps)) if steps else "–"

    def hides(f: Any) -> str:
        rows = result.hiding_chunks[f.layout.name.lower()]
        return "–" if rows is None else str(rows)

    def steps_of(lead: str, part: Any) -> None:
        row(f"{lead}step 0, slowest rank", lambda f: duration(part(f).steps[0].slowest))
        row(f"{lead}a later step, slowest rank", lambda f: later(part(f)))

    if result.training is None:
        steps_of("", lambda f: f)
    else:
        for name in ("forward", "backward"):
            part = attrgetter(name)
            steps_of(f"{name}: ", part)
            row(f"{name}: all steps", lambda f, part=part: duration(part(f).seconds))
    row("exposed communication", lambda f: duration(f.exposed))
    row("one layer in all", lambda f: duration(f.seconds))
    if layers > 1:
        row(f"{layers} layers in all", lambda f: duration(f.seconds * layers))
    row("balance", lambda f: f"{f.balance:.3f}")
    row("efficiency", lambda f: f"{f.efficiency:.1%}")
    row("TFLOPS a GPU", lambda f: f"{f.tflops_per_gpu:.0f}")
    row("chunk that hides the exchange", hides)
    return table


def _advice(result: Any) -> str:
    advice = result.recommendation
    if result.problem.ranks == 1:
        return f"nothing to choose on one GPU: {advice.reason}"
    where = "one GPU" if advice.ranks == 1 else f"{advice.ranks} ranks"
    setting = f"{advice.layout.name.lower()} on {where}"
    if advice.advised:
        return f"recommended: {setting}: {advice.reason}"
    return f"no recommendation; closest comes {setting}: {advice.reason}"
