"""Shared by all commands: JSON or text, and errors as messages with exit code 2."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

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
EXIT_UNWRITTEN = 1  # as click ends if the reader of a pipe has gone
_SUFFIXES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}  # of sizes

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
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        args = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in args
        if getattr(sys.stdout, "errors", None) == "strict":
            # Units and dashes are not in every encoding: what it lacks becomes a question mark.
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        try:
            code = super().main(args, prog_name, complete_var, False, **extra)
        except click.ClickException as error:
            if not as_json:
                error.show()
                sys.exit(error.exit_code)
            _fail(type(error).__name__, error.format_message(), error.exit_code, as_json)
        except click.Abort:
            _fail("Abort", "stopped", 130, as_json)
        except BaracudaError as error:
            _fail(type(error).__name__, str(error), EXIT_REFUSED, as_json)
        except MemoryError as error:
            _fail("MemoryError", str(error) or "out of memory", EXIT_REFUSED, as_json)
        except OSError as error:
            if error.filename is not None:
                _fail(type(error).__name__, str(error), EXIT_REFUSED, as_json)
            # Commands turn failures of their own files into FileProblemError, so this is stdout's.
            _leave_stdout()
            _fail("OSError", f"stdout: cannot be written: {error}", EXIT_UNWRITTEN, as_json)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(kind: str, message: str, code: int, as_json: bool) -> NoReturn:
    message = " ".join(message.split())  # in one line
    if as_json:
        text = json_text({"error": {"type": kind, "message": message}}, indent=None)
    else:
        text = f"Error: {message} [{kind}]"
    click.echo(text, err=True)
    sys.exit(code)


def _leave_stdout() -> None:
    """Drop what stdout still holds: the flush at the end of the process would fail again."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # not a real file in tests
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json_text(value))


def json_text(value: Any, indent: int | None = 2) -> str:
    """Valid JSON of any value.

    JSON has no infinity and no NaN: they become "Infinity", "-Infinity" and "NaN", which float()
    reads.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def check_target(path: Path, suffixes: Sequence[str]) -> None:
    """Check, before any work, that the file can be written.

    Raises
    ------
    FileProblemError
        If the name has another suffix, its folder does not exist, or the file cannot be opened.
    """
    if path.suffix not in suffixes:
        raise FileProblemError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileProblemError(f"{path}: there is no folder {path.parent}")
    try:
        # An existing file keeps its content; a new one is removed again.
        there = path.exists()
        with path.open("r+b" if there else "xb"):
            pass
        if not there:
            path.unlink()
        part = _part_of(path)
        if part != path:
            with part.open("wb"):
                pass
            part.unlink()
    except OSError as error:
        raise FileProblemError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` at the end. After an error `path` is unchanged.

    Raises
    ------
    FileProblemError
        If the file cannot be written.
    """
    part = _part_of(path)
    try:
        try:
            with part.open("wb") as file:
                yield file
            if part != path:
                if path.exists():
                    shutil.copymode(path, part)
                part.replace(os.path.realpath(path))
        except BaseException:
            if part != path:
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FileProblemError(f"{path}: {error}") from error


def _part_of(path: Path) -> Path:
    """Where to write before the file is whole: beside it, or in place if it is no regular file."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        return path
    return target.with_name(f".baracuda-{os.getpid()}.part")


def check_fits_memory(what: str, nbytes: int) -> None:
    """MemoryError if the machine does not have that many bytes."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > most:
        raise MemoryError(
            f"{what} would take {nbytes / 2**30:.3g} GiB; this machine has {most / 2**30:.3g} GiB"
        )


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks alone
    """A number of tokens. The suffixes k, M and G multiply by 2**10, 2**20 and 2**30."""

    name = "size"

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number as an int; a click error if it is not a whole number."""
        if isinstance(value, int):
            return value
        text = str(value).strip().lower()
        suffix = text[-1:] if text[-1:] in _SUFFIXES else ""
        try:
            size = float(text[: len(text) - len(suffix)]) * _SUFFIXES[suffix]
        except ValueError:
            self.fail(f"{value!r} is no size; sizes are like 4096, 128k, 1.5M", param, ctx)
        if not size.is_integer() or size < self._least:  # also inf and nan
            self.fail(
                f"got {value!r}, must be a whole number of tokens >= {self._least}", param, ctx
            )
        return int(size)


def out_console() -> Console:
    """A console for tables on stdout. If stdout is not a terminal, lines are not wrapped."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def err_console() -> Console:
    """A console for progress, on stderr."""
    return Console(stderr=True)


class ProgressBar:
    """A progress bar on stderr. It appears with the first step, so a refused run shows none.

    With ``--json`` there is none, since stderr is then empty or one JSON object.
    """

    def __init__(self, label: str, as_json: bool) -> None:
        self._label = label
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=err_console(),
            disable=as_json,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._bar.stop()

    def update(self, done: float, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task(self._label, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)
