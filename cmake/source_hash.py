"""Hash of src/ that ties evidence to code: comments, docstrings and blank lines are left out.

Run, it prints the hash of the tree that it lies in and nothing else. It needs the standard library
alone, for the build runs it too.

A file becomes a list of tokens, and its digest is that of their lengths and texts, so no two lists
have one digest. A file of a kind that is not known here is one token, all of its bytes. White space
counts where the language minds it: Python's indentation, the lines of preprocessor directives, gaps
between the words of CMake and of linker scripts. Text in which code and comment cannot be told
apart for sure is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path


class LexError(ValueError):
    """A text that no lexer here reads."""


def source_hash(root: Path) -> str:
    """16 hex digits over the relative paths and the tokens of all files of `root`/src."""
    paths = [p for p in (root / "src").rglob("*") if p.is_file() and not p.is_symlink()]
    total = hashlib.sha256()
    for name, path in sorted((p.relative_to(root).as_posix().encode(), p) for p in paths):
        try:
            digest = file_digest(path.name, path.read_bytes())
        except LexError as error:
            raise LexError(f"{path}: {error}") from None
        total.update(digest.encode() + b"  " + name + b"\n")
    return total.hexdigest()[:16]


def file_digest(name: str, data: bytes) -> str:
    """SHA-256 of the tokens of a file with this name."""
    digest = hashlib.sha256()
    for token in file_tokens(name, data):
        raw = token.encode("utf-8", "surrogateescape")
        digest.update(b"%d:%b" % (len(raw), raw))
    return digest.hexdigest()


def file_tokens(name: str, data: bytes) -> list[str]:
    """What of a file counts, in order."""
    text = data.decode("utf-8", "surrogateescape")
    lexer = _LEXERS.get(name) or _LEXERS.get(Path(name).suffix)
    return [text] if lexer is None else list(lexer(text))


def _scan(pattern: re.Pattern[str], text: str) -> Iterator[tuple[str, str, int]]:
    """(kind, token, where it ends) from one end of the text to the other."""
    position = 0
    while position < len(text):
        match = pattern.match(text, position)
        if match is None or match.lastgroup is None:
            raise _refused(text, position)
        position = match.end()
        yield match.lastgroup, match.group(), position


def _refused(text: str, position: int) -> LexError:
    line = text.count("\n", 0, position) + 1
    return LexError(f"line {line}: cannot tell code from comment at {text[position:][:20]!r}")


# C, C++, CUDA. A directive's first token has all of which gaps or quotes differ from other code:
# `#define F(x)` has a parameter, `#define F (x)` has none, and <a//b> is a header's name.
_SPLICE = r"\\[ \t\r\f\v]*\n"
_C = re.compile(
    rf"""
    (?P<space>     (?: [ \t\r\f\v] | {_SPLICE} )+ )
  | (?P<newline>   \n )
  | (?P<comment>   // (?: {_SPLICE} | [^\n] )* | /\*[\s\S]*?\*/ )
  | (?P<raw>       (?:u8|[uUL])? R"(?P<delimiter>[^()\\\s]{{0,16}})\([\s\S]*?\)(?P=delimiter)"\w* )
  | (?P<string>    (?:u8|[uUL])? (?: "(?: {_SPLICE} | \\. | [^"\\\n] )*"
                                   | '(?: {_SPLICE} | \\. | [^'\\\n] )+' ) \w* )
  | (?P<number>    \.?\d (?: [eEpP][+-] | '\w | [\w.] )* )
  | (?P<has>       __has_include\w*[ \t]*\([ \t]*<[^>\n]*> )
  | (?P<word>      [\w$]+ )
  | (?P<paste>     \#\# )
  | (?P<directive> \#[ \t]*include\w*[ \t]*(?: <[^>\n]*> | (?=["\w]) )
                 | \#[ \t]*define[ \t]+[\w$]+\(?
                 | \#(?![ \t]*(?:include|define))[ \t]*\w* )
  | (?P<sign>      <<<|>>>|<=>|<<=|>>=|->\*|\.\.\.|<::|::|->|\+\+|--|<<|>>|<:|:>|<%|%>|\.\*|&&|\|\|
                 | [-+*/%&|^<>=!]= | (?! /\* | %: ) [^\s\w"'\\\#] )
    """,
    re.VERBOSE,
)


def _c_tokens(text: str) -> Iterator[str]:
    line_begins, in_directive = True, False
    for kind, token, end in _scan(_C, text):
        if kind == "newline":
            if in_directive:
                yield "\n"
            line_begins, in_directive = True, False
        elif kind == "space":
            # A backslash that joins the halves of one token would look like a gap.
            if not re.sub(_SPLICE, "", token) and text[end : end + 1].strip():
                raise _refused(text, end - len(token))
        elif kind != "comment":
            if line_begins and kind == "directive":
                in_directive = True
                yield "\n"
            line_begins = False
            yield token


# Python and Cython.
_PYTHON = re.compile(
    r"""
    (?P<space>   (?: [ \t\r\f] | \\\r?\n )+ )
  | (?P<newline> \n )
  | (?P<comment> \#[^\n]* )
  | (?P<string>  [rRbBuUfFcC]{0,2} (?: \"{3} (?: \\[\s\S] | [^\\] )*? \"{3}
                                     | '{3}  (?: \\[\s\S] | [^\\] )*? '{3}
                                     | (?!\"{3}) " (?: \\[\s\S] | [^"\\\n] )* "
                                     | (?!'{3})  ' (?: \\[\s\S] | [^'\\\n] )* ' ) )
  | (?P<number>  \.?\d (?: [eE][+-] | [\w.] )* )
  | (?P<word>    \w+ )
  | (?P<sign>    \*\*=|//=|<<=|>>=|\.\.\.|\*\*|//|<<|>>|->|:=|<> | [-+*/%&|^<>=!@]= | [^\s\w"'\\\#] )
    """,
    re.VERBOSE,
)
_WITH_MEANING = re.compile(r"#\s*(?:cython|distutils)\s*:|#.*coding[:=]")
_DOCSTRING = re.compile(r"[rRuU]?[\"']")


def _python_tokens(text: str) -> Iterator[str]:
    line: list[str] = []  # logical: brackets and backslashes join lines
    indent, depth, only_strings, docstring_may_come = "", 0, True, True
    for kind, token, end in _scan(_PYTHON, text + "\n"):
        if kind == "comment":
            if _WITH_MEANING.match(token):
                yield token
        elif kind == "space":
            if not line:
                indent = token
        elif kind != "newline":
            if kind == "string" and _splits_braces(token):
                raise _refused(text, end - len(token))
            line.append(token)
            depth += (token in "([{") - (token in ")]}")
            only_strings = only_strings and bool(_DOCSTRING.match(token))
        elif depth == 0:
            if line and not (only_strings and docstring_may_come):
                yield "\n" + indent
                yield from line
            if line:
                docstring_may_come = _takes_docstring(line)
            line, indent, only_strings = [], "", True
    if line:
        raise _refused(text, len(text))


def _takes_docstring(line: list[str]) -> bool:
    """Whether the line opens a class or function; the string below `cdef extern` is code in C."""
    if line[-1] != ":" or line[0] not in ("def", "async", "class", "cdef", "cpdef"):
        return False
    return line[0] != "cdef" or ("extern" not in line and ("class" in line or "(" in line))


def _splits_braces(string: str) -> bool:
    """Whether a quote inside of an f-string's braces was taken for its end."""
    prefix = re.match(r"\w*", string)
    if prefix is None or "f" not in prefix.group().lower():
        return False
    fields = string.replace("{{", "").replace("}}", "")
    return fields.count("{") != fields.count("}")


# CMake, and linker scripts: words, and gaps between them.
_CMAKE = re.compile(
    r"""
    (?P<gap>     (?: \s | \#\[(?P<b>=*)\[[\s\S]*?\](?P=b)\] | \#(?!\[=*\[)[^\n]* )+ )
  | (?P<bracket> \[(?P<c>=*)\[[\s\S]*?\](?P=c)\] )
  | (?P<string>  "(?: \\[\s\S] | [^"\\] )*" )
  | (?P<word>    (?: \\[\s\S] | [^\s()\#"\\\[] )+ | [()] | \[(?!=*\[) )
    """,
    re.VERBOSE,
)
_LINKER_SCRIPT = re.compile(
    r"""
    (?P<gap>    (?: \s | /\*[\s\S]*?\*/ | \#[^\n]* )+ )
  | (?P<string> "[^"]*" )
  | (?P<word>   (?: (?!/\*) [^\s\#"] )+ )
    """,
    re.VERBOSE,
)


def _words(pattern: re.Pattern[str]) -> Callable[[str], Iterator[str]]:
    def tokens(text: str) -> Iterator[str]:
        gap, begun = False, False
        for kind, token, _ in _scan(pattern, text):
            if kind != "gap":
                if gap and begun:
                    yield " "
                yield token
                begun = True
            gap = kind == "gap"

    return tokens


_LEXERS: dict[str, Callable[[str], Iterator[str]]] = {
    "CMakeLists.txt": _words(_CMAKE),
    ".cmake": _words(_CMAKE),
    ".map": _words(_LINKER_SCRIPT),
    **dict.fromkeys((".c", ".h", ".cpp", ".hpp", ".cu", ".cuh"), _c_tokens),
    **dict.fromkeys((".py", ".pyi", ".pyx", ".pxd", ".pxi"), _python_tokens),
}

if __name__ == "__main__":
    print(source_hash(Path(__file__).resolve().parent.parent))
