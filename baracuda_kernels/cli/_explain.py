"""``explain``: which kernel a problem gets on an architecture, and why not the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from baracuda_kernels.cli._console import json_option, out_console, print_json

if TYPE_CHECKING:
    from baracuda_kernels.registry import OpSpec, ProblemOption


_PARAMS = f"{__name__}.params"


class _ProblemCommand(click.Command):
    """A command whose options are those of the op that it explains.

    The op is looked up in the registry when the command runs. So ops of other packages have their
    options here too, and other commands do not wait for the search for entry points.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from baracuda_kernels import registry

        offered = {spec.name: spec for spec in registry.specs() if spec.options}
        choice = click.Option(
            ["--op"],
            type=click.Choice(list(offered)),
            default=next(iter(offered)),
            show_default=True,
            help="What to compute. The options from here to --direction describe it.",
        )
        # --op is parsed first: it decides on the other options.
        lenient = {"ignore_unknown_options": True, "allow_extra_args": True}
        first = click.Command(self.name, params=[choice], add_help_option=False,
                              context_settings=lenient)  # fmt: skip
        op = first.make_context(self.name, list(args), parent=ctx.parent).params["op"]
        ctx.meta[_PARAMS] = [choice, *(_option(offered[op], o) for o in offered[op].options)]
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*ctx.meta.get(_PARAMS, []), *super().get_params(ctx)]


def _option(spec: OpSpec, option: ProblemOption) -> click.Option:
    # Click would derive a lower-case parameter name from the flag, so the option's name is given.
    flag, default = (f"--{option.name.replace('_', '-')}", option.name), option.default
    if option.type is bool:
        return click.Option(flag, is_flag=True, default=bool(default), help=option.help)
    kind: Any = option.type
    if hasattr(kind, "parse"):  # an enum of the vocabulary
        members = [m for m in kind if m in spec.elements or not hasattr(kind, "of_dtype")]
        kind = click.Choice([member.name.lower() for member in members])
        default = None if default is None else default.name.lower()
    return click.Option(flag, type=kind, default=default, show_default=True, help=option.help)


@click.command(cls=_ProblemCommand, short_help="Which kernel a problem gets, and why not others.")
@click.option(
    "--direction", type=click.Choice(["forward", "backward"]), default="forward", show_default=True,
    help="The outputs (forward) or their gradients."
)
@click.option("--arch", help="host for the CPU; sm_90 or 9.0 for a GPU. [default: this machine's]")
@json_option
def explain(as_json: bool, arch: str | None, direction: str, op: str, **problem: Any) -> None:
    """Which kernel a problem gets on an architecture, and why not the others.

    Needs no GPU. For a GPU it needs a build with the CUDA kernels.
    """
    from baracuda_kernels import registry

    spec = registry.get(op)
    for option in spec.options:
        if hasattr(option.type, "parse") and problem[option.name] is not None:
            problem[option.name] = option.type.parse(problem[option.name])
    explanation = spec.explain(spec.problem(**problem), arch, direction=direction)
    if as_json:
        print_json(explanation.to_dict())
        return
    title = f"{explanation.op} {direction} on {explanation.arch}"
    table = Table("kernel", "answer", "why", title=title)
    for candidate in explanation.candidates:
        if candidate is explanation.chosen:
            verdict = "selected"
        else:
            verdict = "fits, but comes later" if candidate.accepted else "refused"
        table.add_row(candidate.family, verdict, candidate.reason)
    out_console().print(table)
    if explanation.chosen is None:
        click.echo("no kernel serves this problem")
