"""The C ABI as its headers state it: constants, structs and functions of src/cuda/include/baracuda.

The build writes Cython's declarations from them, and the tests make their ctypes structs:

    python3 cmake/c_abi.py --output c_api.pxd HEADER...

The headers are plain C in one style: enums, ``typedef struct``, entries marked BARACUDA_API, and
``#define NAME number``. What the parser does not know is an error.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

INCLUDE = Path(__file__).parents[1] / "src" / "cuda" / "include"


class Member(NamedTuple):
    """A struct's field, or an argument."""

    name: str
    type: str | Function
    extents: tuple[int, ...] = ()


class Function(NamedTuple):
    """An entry of the library, or a field that points to a function."""

    name: str
    result: str
    arguments: tuple[Member, ...]


class Header(NamedTuple):
    """One header's declarations, in its order; a struct without fields is opaque."""

    name: str
    constants: dict[str, int]
    structs: dict[str, tuple[Member, ...]]
    named_before: list[str]  # structs that others point to before their definition
    functions: dict[str, Function]


_DEFINE = re.compile(r"#define (BARACUDA_\w+) (\d+)")
_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|extern "C" \{|#[^\n]*', re.DOTALL)
_STATEMENT = re.compile(r"(?:[^;{}]|\{[^{}]*\})+;")
_ENUM = re.compile(r"enum ?\w* ?\{(.*)\}")
_STRUCT = re.compile(r"(?:typedef )?struct (\w+) ?\{(.*)\} ?\w*")
_FORWARD = re.compile(r"typedef struct (\w+) \1")
_POINTER_TO_FUNCTION = re.compile(r"(.+?) ?\(\*(\w+)\)\((.*)\)")
_ENTRY = re.compile(r"BARACUDA_API (.+?) ?(\w+)\((.*)\)")
_VARIABLE = re.compile(r"(.+?[* ]) ?(\w+)((?: ?\[\w+\])*)")


def read_header(path: Path, constants: dict[str, int]) -> Header:
    """The declarations of one header; adds its constants to `constants`."""
    text = path.read_text()
    header = Header(f"baracuda/{path.name}", {}, {}, [], {})

    def define(name: str, value: int) -> None:
        constants[name] = header.constants[name] = value

    for name, value in _DEFINE.findall(text):
        define(name, int(value))
    body = _NOISE.sub(" ", text).rstrip().removesuffix("}")
    body = re.sub(r"\s+", " ", body).strip()
    read = 0
    for statement in _STATEMENT.finditer(body):
        if body[read : statement.start()].strip():
            break
        read = statement.end()
        line = statement[0].strip(" ;")
        if found := _FORWARD.fullmatch(line):
            header.structs[found[1]] = ()
        elif found := _STRUCT.fullmatch(line):
            fields = (_member(f, constants) for f in found[2].split(";") if f.strip())
            if header.structs.pop(found[1], None) is not None:
                header.named_before.append(found[1])
            header.structs[found[1]] = tuple(fields)
        elif found := _ENUM.fullmatch(line):
            following = 0
            for item in filter(str.strip, found[1].split(",")):
                name, _, value = (part.strip() for part in item.partition("="))
                define(name, _sum(value, constants) if value else following)
                following = constants[name] + 1
        elif found := _ENTRY.fullmatch(line):
            arguments = tuple(_arguments(found[3], constants))
            header.functions[found[2]] = Function(found[2], _type(found[1]), arguments)
        else:
            raise SyntaxError(f"{path}: {line}")
    if body[read:].strip():
        raise SyntaxError(f"{path}: {body[read:]}")
    return header


def read_headers(*paths: Path) -> list[Header]:
    """These headers; all of src/cuda/include/baracuda without any."""
    constants: dict[str, int] = {}
    everything = {p.name: read_header(p, constants) for p in _by_inclusion(INCLUDE / "baracuda")}
    return [everything[p.name] for p in paths] if paths else list(everything.values())


def _by_inclusion(folder: Path) -> list[Path]:
    """The folder's headers, each behind those that it includes."""
    order: list[Path] = []

    def visit(path: Path) -> None:
        for name in re.findall(r'#include "baracuda/(.+)"', path.read_text()):
            visit(folder / name)
        if path not in order:
            order.append(path)

    for path in sorted(folder.glob("*.h")):
        visit(path)
    return [path for path in order if path.name != "export.h"]


def _sum(text: str, constants: dict[str, int]) -> int:
    terms = (term.strip() for term in text.split("+"))
    return sum(int(term) if term.isdigit() else constants[term] for term in terms)


def _type(text: str) -> str:
    return re.sub(r" ?\*", "*", text.strip())


def _member(text: str, constants: dict[str, int]) -> Member:
    text = text.strip()
    if found := _POINTER_TO_FUNCTION.fullmatch(text):
        arguments = tuple(_arguments(found[3], constants))
        return Member(found[2], Function("", _type(found[1]), arguments))
    found = _VARIABLE.fullmatch(text)
    if found is None:
        raise SyntaxError(text)
    extents = (_sum(extent, constants) for extent in re.findall(r"\[(\w+)\]", found[3]))
    return Member(found[2], _type(found[1]), tuple(extents))


def _arguments(text: str, constants: dict[str, int]) -> Iterator[Member]:
    if text.strip() in ("", "void"):
        return
    for argument in re.split(r",(?![^(]*\))", text):
        yield _member(argument, constants)


# ---- Cython's declarations -----------------------------------------------------------------


def write_pxd(headers: list[Header]) -> str:
    """Declarations for cimport; those of other headers come from _core's."""
    lines = []
    for header in headers:
        lines += ["", f'cdef extern from "{header.name}" nogil:']
        if header.constants:
            lines += ["    enum:", *(f"        {name}" for name in header.constants)]
        lines += [f"    ctypedef struct {name}" for name in header.named_before]
        for name, fields in header.structs.items():
            lines.append(f"    ctypedef struct {name}:")
            lines += [f"        {_declare(field)}" for field in fields] or ["        pass"]
        lines += [f"    {signature(f, f.name)}" for f in header.functions.values()]
    head = ["# cython: language_level=3", "# Written by cmake/c_abi.py from the headers.", ""]
    head.append("from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t")
    words = set(re.findall(r"\w+", "\n".join(lines)))
    elsewhere = {name for header in read_headers() if header not in headers for name in header.structs}
    if named := sorted(words & elsewhere):
        head.append(f"from baracuda_kernels._core.c_api cimport {', '.join(named)}")
    return "\n".join([*head, *lines, ""])


def _declare(member: Member) -> str:
    if isinstance(member.type, Function):
        return f"{signature(member.type, f'(*{member.name})')} noexcept nogil"
    return f"{member.type} {member.name}{''.join(f'[{n}]' for n in member.extents)}"


def signature(function: Function, name: str) -> str:
    """A C declaration of it, for Cython, without the names of arguments: some are words of Python."""
    types = (
        signature(a.type, "(*)") + " noexcept nogil" if isinstance(a.type, Function) else a.type
        for a in function.arguments
    )
    return f"{function.result} {name}({', '.join(types)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Declares the C ABI of headers for Cython.")
    parser.add_argument("headers", nargs="+", type=Path)
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    arguments.output.write_text(write_pxd(read_headers(*arguments.headers)))
