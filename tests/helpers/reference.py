"""The public API: names, signatures from source or stub, and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import baracuda_kernels as bk

_ROOT = Path(__file__).parents[2]
# Public modules besides the package itself. Those of frameworks are only read.
MODULES = ("reference", "registry", "predict", "testing", "interop.torch",
           "interop.transformers", "interop.jax")  # fmt: skip


@dataclass
class Described:
    """A public class, function, method or property."""

    name: str
    kind: str  # "class", "function" or "property"
    parameters: dict[str, str | None]  # name -> its default as the source has it; None without
    doc: str

    def section(self, title: str) -> str:
        """The text below one heading of its docstring; empty without it."""
        pattern = rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)"
        found = re.search(pattern, self.doc, re.DOTALL | re.MULTILINE)
        return found[1] + "\n" if found else ""

    def described(self) -> dict[str, str]:
        """Parameter (of a class of results: attribute) -> its line and what stands below it."""
        both = self.section("Attributes") + self.section("Parameters")
        return {
            name.strip(" *"): text
            for text in re.split(r"^(?=\S)", both, flags=re.MULTILINE)
            for name in text.partition("\n")[0].partition(" :")[0].split(",")
            if text.strip()
        }


def public() -> Iterator[Described]:
    """All public objects, each once."""
    for name in sorted(set(bk.__all__) - {"__version__", "errors", "registry"}):
        value = getattr(bk, name)
        yield from _of_module(value.__module__, [name], "baracuda_kernels")
    for module in MODULES:
        tree = _tree(f"baracuda_kernels.{module}")[0]
        for owner, name in _exports(f"baracuda_kernels.{module}", tree):
            yield from _of_module(owner, [name], module)


def _exports(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(defining module, name) of the names in `__all__` that the package does not define itself."""
    names: list[str] = []
    sources: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = ast.literal_eval(node.value)
        if isinstance(node, ast.ImportFrom) and node.module:
            sources |= {alias.asname or alias.name: node.module for alias in node.names}
    for name in names:
        if name not in bk.__all__:
            yield sources.get(name, module), name


def _tree(module: str) -> tuple[ast.Module, bool]:
    """Its source, or its stub; whether it is a stub."""
    base = _ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".pyi"), base / "__init__.pyi", base.with_suffix(".py"),
                 base / "__init__.py",
                 _ROOT.joinpath("src", "pyx", *module.split(".")).with_suffix(".py")):  # fmt: skip
        if path.is_file():
            return ast.parse(path.read_text()), path.suffix == ".pyi"
    raise FileNotFoundError(module)


def _of_module(module: str, names: list[str], shown: str) -> Iterator[Described]:
    tree, stub = _tree(module)
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name not in names:
            continue
        if node is not [n for n in tree.body if getattr(n, "name", "") == node.name][-1]:
            continue  # an overload before it
        value = getattr(importlib.import_module(module), node.name) if stub else None
        yield from _describe(node, value, f"{shown}.{node.name}")
        if isinstance(node, ast.ClassDef):
            own = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            inherited = _members(_inherited(tree, node, module), value, f"{shown}.{node.name}", own)
            yield from (member for member in inherited if member.doc)


def _describe(
    node: ast.ClassDef | ast.FunctionDef, value: object, name: str
) -> Iterator[Described]:
    if isinstance(node, ast.FunctionDef):
        yield Described(name, "function", _parameters(node), _doc(node, value))
        return
    parameters: dict[str, str | None] = {}
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name in ("__init__", "__new__"):
            parameters = _parameters(part)
    if _is(node, "dataclass"):
        parameters = {
            part.target.id: None if part.value is None else ast.unparse(part.value)
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        }
    yield Described(name, "class", parameters, _doc(node, value))
    yield from _members(node.body, value, name, set())


def _inherited(tree: ast.Module, node: ast.ClassDef, module: str) -> list[ast.stmt]:
    """The bodies of its private bases in its module or the core, nearest first."""
    sources = {
        alias.name: part.module
        for part in tree.body
        if isinstance(part, ast.ImportFrom)
        and (part.module or "").startswith("baracuda_kernels._core.")
        for alias in part.names
    }
    own = {part.name for part in tree.body if isinstance(part, ast.ClassDef)}
    found: list[ast.stmt] = []
    for base in node.bases:
        name = getattr(base, "id", "")
        source = module if name in own else sources.get(name)
        if source is None or name in bk.__all__:
            continue
        its_tree = _tree(source)[0]
        for part in its_tree.body:
            if isinstance(part, ast.ClassDef) and part.name == name:
                found += [*part.body, *_inherited(its_tree, part, source)]
    return found


def _members(body: list[ast.stmt], value: object, name: str, seen: set[str]) -> Iterator[Described]:
    for part in body:
        if not isinstance(part, ast.FunctionDef) or part.name.startswith("_") or part.name in seen:
            continue
        last = [p for p in body if getattr(p, "name", "") == part.name][-1]
        seen.add(part.name)
        kind = "property" if _is(part, "property") else "function"
        found = getattr(value, part.name, None)
        yield Described(f"{name}.{part.name}", kind, _parameters(last), _doc(last, found))


def _is(node: ast.ClassDef | ast.FunctionDef, decorator: str) -> bool:
    return any(decorator in ast.unparse(d) for d in node.decorator_list)


def _parameters(node: ast.FunctionDef) -> dict[str, str | None]:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    without = [None] * (len(plain) - len(arguments.defaults))
    found = dict(zip([a.arg for a in plain], [*without, *arguments.defaults], strict=True))
    found |= {a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    return {
        name: None if default is None else ast.unparse(default)
        for name, default in found.items()
        if name not in ("self", "cls")
    }


def _doc(node: ast.ClassDef | ast.FunctionDef, value: object) -> str:
    written = ast.get_docstring(node)
    return written or inspect.cleandoc(getattr(value, "__doc__", None) or "")
