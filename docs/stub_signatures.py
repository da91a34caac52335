"""Signatures of compiled classes and methods for the API reference, from the package's stubs.

Compiled methods' own name C types and ``self``. Compiled classes have none but the first line of
their docstring.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_MADE_BY = ("__init__", "__new__")


def process_signature(
    app: object, what: str, name: str, value: Any, options: object, signature: Any, returns: Any
) -> tuple[str, str | None] | None:
    """For Sphinx's event ``autodoc-process-signature``; None leaves the signature as it is.

    Where there is none, as of properties, the event can give none.
    """
    found = None if signature is None else of_name(name)
    return None if found is None else (found, returns)


def of_name(name: str) -> str | None:
    """``"(stream, comm, args, *, timeline=None)"`` of a public name; None where no stub has it."""
    package, *path = name.split(".")
    owner: Any = importlib.import_module(package)
    for part in path[:-1]:
        try:
            owner = getattr(owner, part)
        except AttributeError:
            return None
    value = inspect.getattr_static(owner, path[-1], None)
    if inspect.isclass(owner):
        (definer, *_) = [c for c in owner.__mro__ if path[-1] in vars(c)] or [None]
        return None if definer is None else _of_stub(definer, (path[-1],))
    if inspect.isclass(value):
        found = (_of_stub(c, _MADE_BY) for c in value.__mro__ if c.__module__ in sys.modules)
        return next((text for text in found if text is not None), None)
    return None


def _of_stub(value: type, functions: tuple[str, ...]) -> str | None:
    for node in _stub(value.__module__).body:
        if isinstance(node, ast.ClassDef) and node.name == value.__name__:
            found = [n for n in node.body if getattr(n, "name", "") in functions]
            if found and isinstance(found[-1], ast.FunctionDef):
                return _text(found[-1])
    return None


@functools.cache
def _stub(module: str) -> ast.Module:
    compiled = str(getattr(sys.modules[module], "__file__", "")).endswith(".so")
    path = ROOT.joinpath(*module.split(".")).with_suffix(".pyi")
    return ast.parse(path.read_text() if compiled and path.is_file() else "")


def _text(function: ast.FunctionDef) -> str:
    """Names and defaults; the types stand with the parameters below."""
    arguments = copy.deepcopy(function.args)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if not any(getattr(d, "id", "") == "staticmethod" for d in function.decorator_list):
        del (arguments.posonlyargs or arguments.args)[0]
    return f"({ast.unparse(arguments)})"
