"""What the tests hold every adapter to refuse, read from their source: which call, which error."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
TYPED = ("InvalidProblemError", "UnsupportedError")


def refusals(file: str) -> Iterator[tuple[str, str, list[str]]]:
    """(test, error types, what the messages must say) of a file's tests that expect a refusal."""
    for test in ast.parse((TESTS / file).read_text()).body:
        if not isinstance(test, ast.FunctionDef) or not test.name.startswith("test_"):
            continue
        errors: set[str] = set()
        messages: list[str] = []
        for call in ast.walk(test):
            if not _is_raises(call):
                continue
            own = set(_constants(test, call.args[0])) & set(TYPED)
            if own:
                errors |= own
                matches = [k.value for k in call.keywords if k.arg == "match"]
                messages += [text for match in matches for text in _constants(test, match)]
        said = [text for text in dict.fromkeys(map(_plain, messages)) if " " in text]
        if said:
            yield test.name, " or ".join(sorted(errors)), said


def _is_raises(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "raises"


def _constants(test: ast.FunctionDef, node: ast.expr) -> list[str]:
    """What an expression may be: a text, an error's name, or a parameter's values."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.Call):  # re.escape(message)
        return [re.escape(text) for text in _constants(test, node.args[0])]
    if not isinstance(node, ast.Name):
        return []
    for mark in test.decorator_list:
        if not isinstance(mark, ast.Call) or getattr(mark.func, "attr", "") != "parametrize":
            continue
        names = ast.literal_eval(mark.args[0])
        names = [x.strip() for x in names.split(",")] if isinstance(names, str) else list(names)
        if node.id in names and isinstance(mark.args[1], ast.List):
            rows = [[r] if len(names) == 1 else getattr(r, "elts", []) for r in mark.args[1].elts]
            cells = [row[names.index(node.id)] for row in rows if len(row) == len(names)]
            return [text for cell in cells for text in _constants(test, cell)]
    return [node.id]


def _plain(pattern: str) -> str:
    """A regular expression as people read it."""
    text = re.sub(r"\.\*", " … ", pattern)
    return " ".join(re.sub(r"\\(.)", r"\1", text).split())
