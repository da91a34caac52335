"""What all commands share: JSON or text, and errors as messages with exit code 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from baracuda_kernels.errors import BaracudaError

EXIT_REFUSED = 2

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on stdout instead of text."
)


class FileProblemError(BaracudaError, OSError):
    """A file that cannot be read or written as tensors; the message says why."""

    def __str__(self) -> str:
        return str(self.args[0])


class TypedErrorGroup(click.Group):
    """A group whose typed errors end as one message on stderr, as JSON under ``--json``."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *more: Any,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, *more, standalone_mode=False, **extra)
        args = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in args
        try:
            code = super().main(args, prog_name, *more, standalone_mode=False, **extra)
        except click.ClickException as error:
            if not as_json:
                error.show()
                sys.exit(error.exit_code)
            _fail(type(error).__name__, error.format_message(), error.exit_code, as_json)
        except click.Abort:
            _fail("Abort", "stopped", 130, as_json)
        except BaracudaError as error:
            _fail(type(error).__name__, str(error), EXIT_REFUSED, as_json)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(kind: str, message: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        text = json.dumps({"error": {"type": kind, "message": message}})
    else:
        text = f"Error: {message} [{kind}]"
    click.echo(text, err=True)
    sys.exit(code)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=2))


def out_console() -> Console:
    """For tables on stdout; as wide as it takes where stdout is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def err_console() -> Console:
    """For progress, on stderr."""
    return Console(stderr=True)


class ProgressBar:
    """A bar on stderr that appears with the first step: a refused run shows none."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=err_console(),
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task(self._label, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)
