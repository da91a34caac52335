"""The source hash minds every token of src/ and no comment, docstring or blank line.

Where comments are, g++ says for C++ and CUDA, and pygments for the rest and for each token's place.
"""

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Whitespace

from baracuda_kernels._core import _info

ROOT = Path(__file__).parent.parent.parent
_SPEC = importlib.util.spec_from_file_location("source_hash", ROOT / "cmake" / "source_hash.py")
source_hash = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(source_hash)

FILES = sorted(p for p in (ROOT / "src").rglob("*") if p.is_file() and p.suffix != ".pyc")
C_SUFFIXES = (".h", ".cpp", ".cu", ".cuh")
PYTHON_SUFFIXES = (".py", ".pyx", ".pxd")
WITH_MEANING = re.compile(r"# cython:")
# Here docstrings have triple quotes and stand below a line that ends in a colon, or on top. In
# `cdef extern from *:` such a string is code.
DOCSTRING = re.compile(
    r"""(?:\A(?:[ \t]*(?:\#[^\n]*)?\n)*|^[ ]*(?:def|class|cdef(?![ ]extern)|cpdef)\b[^\n]*:\n
    |^[ ]*(?:def|class|cdef(?![ ]extern)|cpdef)\b[^\n"]*\([^)"]*\)[^\n"]*:\n)
    [ \t]*(?P<doc>r?\"{3}[\s\S]*?\"{3})[ ]*$""",
    re.VERBOSE | re.MULTILINE,
)


def digest(path, text):
    """The digest of the file if it had this text; None if the text is refused."""
    try:
        return source_hash.file_digest(path.name, text.encode())
    except source_hash.LexError:
        return None


def words(path, text):
    """(start, text, kind) of comments ("comment"), docstrings ("doc") and all other tokens."""
    kind = {".map": "c", ".txt": "cmake"}.get(path.suffix)
    if kind is None:
        kind = "python" if path.suffix in PYTHON_SUFFIXES else "cuda"
    docs = []
    if kind == "python":
        docs = [match.span("doc") for match in DOCSTRING.finditer(text)]
        yield from ((a, text[a:b], "doc") for a, b in docs)
    lexer = get_lexer_by_name(kind)
    for start, token, value in lexer.get_tokens_unprocessed(text):
        if (
            value.strip() in ("", "\\")
            or token in Whitespace
            or any(a <= start < b for a, b in docs)
        ):
            continue
        comment = token in Comment and token not in (Comment.Preproc, Comment.PreprocFile)
        comment = comment and not WITH_MEANING.match(value)
        yield start, value, "comment" if comment else str(token)


def without(text, spans):
    """The text without these (start, text) and without white space and joined lines."""
    for start, cut in sorted(spans, reverse=True):
        text = text[:start] + text[start + len(cut) :]
    return re.sub(r"\\\n|\s", "", text)


def test_all_of_src_is_looked_at():
    assert {p.suffix for p in FILES} == {*C_SUFFIXES, *PYTHON_SUFFIXES, ".txt", ".map"}
    assert len(FILES) > 100


def test_the_tokens_of_cpp_are_what_the_compiler_leaves():
    """Every character that g++ does not take for a comment is in a token, and no other."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    command = [compiler, "-fpreprocessed", "-dD", "-E", "-P", "-x", "c++", "-"]
    for path in (p for p in FILES if p.suffix in C_SUFFIXES):
        text = path.read_text().replace("#pragma once\n", "\n")  # g++ would drop it
        left = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        tokens = "".join(source_hash.file_tokens(path.name, text.encode()))
        assert without(tokens, []) == without(left.stdout, []), path


def test_the_tokens_of_the_rest_are_all_but_comments_and_docstrings():
    for path in (p for p in FILES if p.suffix not in C_SUFFIXES):
        text = path.read_text()
        left = [(a, cut) for a, cut, kind in words(path, text) if kind in ("comment", "doc")]
        tokens = "".join(source_hash.file_tokens(path.name, text.encode()))
        assert without(tokens, []) == without(text, left), path


def test_a_change_of_any_token_changes_the_hash():
    """One token of every kind in every file, and some more: another letter, none, or twice."""
    draw, changed = random.Random(8), 0
    for path in FILES:
        text = path.read_text()
        before, by_kind = digest(path, text), {}
        assert before is not None
        for start, value, kind in words(path, text):
            if kind not in ("comment", "doc"):
                by_kind.setdefault(kind, []).append((start, value))
        for tokens in by_kind.values():
            for start, value in draw.sample(tokens, min(2, len(tokens))):
                at = start + draw.choice([i for i, c in enumerate(value) if not c.isspace()])
                other = "7" if text[at] != "7" else "3"
                end = start + len(value)
                after = draw.choice(
                    [
                        text[:at] + other + text[at + 1 :],
                        text[:start] + text[end:],
                        text[:end] + " " + text[start:],
                    ]
                )
                assert digest(path, after) != before, (path, value, after[start : end + 5])
                changed += 1
    assert changed > 1500


def test_words_may_change():
    """Every comment and docstring gets other words, and every line an empty one below."""
    edited = 0
    for path in FILES:
        text = after = path.read_text()
        for start, old, kind in sorted(words(path, text), reverse=True):
            if kind in ("comment", "doc"):
                letters = re.search(r"[a-z]{2,}", old)
                if letters is None:
                    continue
                other = 'don\'t say "#" or // here' if kind == "comment" else "say # or // here"
                new = old[: letters.start()] + other + old[letters.end() :]
                after = after[:start] + new + after[start + len(old) :]
                edited += 1
        assert digest(path, after) == digest(path, text), path
        assert digest(path, "\n\n" + after + "\n \n") == digest(path, text), path
        assert digest(path, blank_lines(path, text)) == digest(path, text), path
    assert edited > 1000


def blank_lines(path, text):
    """A blank line below each line that no string or directive goes on from."""
    inside = [(a, a + len(v)) for a, v, k in words(path, text) if "\n" in v and k != "comment"]
    parts, position = [], 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        joined = line.endswith("\\\n") or any(a < position < b for a, b in inside)
        parts.append(line if joined else line + "  \n")
    return "".join(parts)


SAME = {
    "a.cu": [
        ("int a; // b", "int a;"),
        ("int a; /* b\n c */ int d;", "int a;\n\n   int d;  "),
        ("f(/*n=*/1, // one\n  2);", "f(1, 2);"),
        ("#define A 1 // one \\\n still a comment\nint b;", "#define A 1\nint b;"),
        ("#define A /* over\n lines */ 1\n", "#define A 1\n"),
        ("#define A(x) \\\n  (x)\n", "#define A(x)   (x)\n"),
        ("int n = 1'000; // don't", "int n = 1'000;"),
    ],
    "a.pyx": [
        ('"""Module."""\nx = 1\n', "# another\n\nx = 1  # one\n"),
        ('def f():\n    """Doc # no comment."""\n    return 1', "def f():\n    return 1"),
        ("cdef class A:\n    'Doc.' ' And more.'\n    cdef int a", "cdef class A:\n    cdef int a"),
        ("cdef int f(x) except -1:\n    r'''Doc.'''\n    a", "cdef int f(x) except -1:\n    a"),
        ("class A(\n    B,  # why\n):\n    '''Doc.'''\n    a = 1", "class A(B,):\n    a = 1"),
        ("async def f():\n    # first\n    '''Doc.'''\n    a", "async def f():\n    a"),
        ("x = f(1, # one\n      2)", "x = f(1, 2)"),
    ],
    "CMakeLists.txt": [
        ("set(a b) # c", "set(a b)"),
        ("#[[ one\n two ]] set(a #[=[ ]] ]=] b)", "set(a\n\n b)"),
    ],
    "a.map": [("{ /* a */ local: *; # b\n};", "{ local: *;\n};")],
}
OTHER = {
    "a.cu": [
        ('f("// a");', 'f("// b");'),
        ('asm("mov.u32 %0, 1; // a\\n" :);', 'asm("mov.u32 %0, 1; // b\\n" :);'),
        ('x = R"(a " // b)";', 'x = R"(a " // c)";'),
        ('x = R"p()" /* a */ )p";', 'x = R"p()" /* b */ )p";'),
        ("c = '\"'; d = 1; // '\"'", "c = '\"'; d = 2; // '\"'"),
        ('s = "\\"// a";', 's = "\\"// b";'),
        ("n = 1'0 + '/' + 2;", "n = 1'0 + '/' + 3;"),
        ("#include <a//b>", "#include <a//c>"),
        ("#if __has_include(<a//b>)", "#if __has_include(<a//c>)"),
        ("#define F(x) 1", "#define F (x) 1"),
        ("#define A 1\nint b;", "#define A 1 int b;"),
        ("#pragma unroll\nfor", "#pragma unroll 1\nfor"),
        ("a = b + +c;", "a = b ++c;"),
        ("ab", "a b"),
        ('L"a"', 'L "a"'),
        ('"a"_x', '"a" _x'),
        ('"a" "b"', '"a\\" \\"b"'),
        ('"a b"', '"a  b"'),
        ("a // b \\\nc", "a // b \nc"),
        ("a // b \\  \nc", "a // b   \nc"),
        ("a /* b */ c", "a /* b */ d"),
        ("a < ::b", "a <: :b"),
    ],
    "a.pyx": [
        ("x = '# a'", "x = '# b'"),
        ("x = '''\n# a\n'''", "x = '''\n# b\n'''"),
        ("x = 1\n'''a'''", "x = 1\n'''b'''"),
        ("def f():\n    x = 1\n    'a'", "def f():\n    x = 1\n    'b'"),
        ("def f():\n    b'a'", "def f():\n    b'b'"),
        ("def f():\n    f'{a}'", "def f():\n    f'{b}'"),
        ("def f():\n    'a'.b()", "def f():\n    'c'.b()"),
        ("def f():\n    return 'a'", "def f():\n    return 'b'"),
        ("if a:\n    'b'", "if a:\n    'c'"),
        ("cdef extern from *:\n    '''int a;'''", "cdef extern from *:\n    '''int b;'''"),
        ("if a:\n    b\n    c", "if a:\n    b\nc"),
        ("x = 1; y", "x = 1\ny"),
        ("x = a\\\n-b", "x = a\n-b"),
        ("# cython: cdivision=True\nx", "# cython: cdivision=False\nx"),
        ('x = f"{a:#x}"', 'x = f"{a:#o}"'),
        ("x = '\\'# a'", "x = '\\'# b'"),
        ("x = r'\\'  # a'", "x = r'\\'  # b'"),
        ("a = b < <c", "a = b <<c"),
        ("<void*>a", "<void* >b"),
    ],
    "CMakeLists.txt": [
        ('set(a "b # c")', 'set(a "b # d")'),
        ("set(a [[b # c]])", "set(a [[b # d]])"),
        ("set(a b\\#c)", "set(a b\\#d)"),
        ("set(a b c)", "set(a bc)"),
        ('set(a b"c")', 'set(a b "c")'),
    ],
    "a.map": [("{ local: *; };", "{ global: *; };"), ('{ "a#b"; };', '{ "a#c"; };')],
    "a.txt": [("a # b", "a # c"), ("a\n", "a\n\n")],
}
REFUSED = {
    "a.cu": [
        "a /* b",
        'R\\\n"(a)"',
        "/\\\n/ a",
        "%:define A",
        "#define/**/A(x)",
        "#include/**/<a>",
        "#error don't",
    ],
    "a.pyx": ['x = f"{a["b"]}"', "x = '''a", "x = (1"],
    "CMakeLists.txt": ['set(a "b)', "set(a [[b)"],
    "a.map": ["{ /* a"],
}


def _cases(table):
    return [(name, *pair) for name, pairs in table.items() for pair in pairs]


@pytest.mark.parametrize(("name", "one", "two"), _cases(SAME))
def test_other_words_only(name, one, two):
    assert digest(Path(name), one) == digest(Path(name), two) is not None


@pytest.mark.parametrize(("name", "one", "two"), _cases(OTHER))
def test_other_code(name, one, two):
    first, second = digest(Path(name), one), digest(Path(name), two)
    assert first is not None and second is not None and first != second


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in REFUSED.items() for t in texts])
def test_what_could_be_misread_is_refused(name, text):
    with pytest.raises(source_hash.LexError, match="cannot tell code from comment"):
        source_hash.file_digest(name, text.encode())


def test_names_count_and_folders_do_not(tmp_path):
    for root, name in (("one", "a.h"), ("two/deep", "a.h"), ("three", "b.h")):
        path = tmp_path / root / "src" / name
        path.parent.mkdir(parents=True)
        path.write_text("int a;\n")
    hashes = [source_hash.source_hash(tmp_path / r) for r in ("one", "two/deep", "three")]
    assert hashes[0] == hashes[1] != hashes[2]
    assert re.fullmatch("[0-9a-f]{16}", hashes[0])


def test_script_and_build_have_one_hash(tmp_path):
    """The script needs no package, and minds neither folder nor locale."""
    command = [sys.executable, "-I", "-S", str(ROOT / "benchmarks" / "source.py")]
    printed = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stderr == "" and printed.stdout == _info.build_info()["source_hash"] + "\n"
