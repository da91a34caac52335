"""The C ABI of Cython and ctypes equals that of the headers, as a C++ compiler reads them."""

import ctypes as ct
import re
import subprocess

import pytest
from helpers import host_peers, ring_abi
from helpers.c_headers import CONSTANTS, FIELDS, FUNCTIONS, HEADERS, c_abi, plain, structure

INCLUDES = "".join(f'#include "{header.name}"\n' for header in HEADERS)


def compiled(body, tmp_path):
    """Output of a program that includes every header."""
    source, program = tmp_path / "abi.cpp", tmp_path / "abi"
    source.write_text(f"#include <cstddef>\n#include <cstdio>\n#include <type_traits>\n{INCLUDES}{body}")
    subprocess.run(
        ["g++", "-std=c++17", f"-I{c_abi.INCLUDE}", "-o", program, source],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


def test_the_headers_are_all_read():
    names = {f"baracuda/{path.name}" for path in (c_abi.INCLUDE / "baracuda").glob("*.h")}
    assert {header.name for header in HEADERS} == names - {"baracuda/export.h"}
    text = "".join(path.read_text() for path in (c_abi.INCLUDE / "baracuda").glob("*.h"))
    entries = re.findall(r"^BARACUDA_API[^;(]*?(\w+)\(", text, re.MULTILINE)
    assert sorted(entries) == sorted(FUNCTIONS) and len(entries) > 90


def test_structs_lie_in_memory_as_the_compiler_lays_them(tmp_path):
    lines, expected = [], []
    for name, fields in FIELDS.items():
        if not fields:
            continue
        struct = structure(name.removeprefix("baracuda_"))
        assert [n for n, _ in struct._fields_] == [field.name for field in fields]
        lines.append(f'std::printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ct.sizeof(struct)}")
        for field in fields:
            lines.append(f'std::printf("{name}.{field.name} %zu %zu\\n", '
                         f"offsetof({name}, {field.name}), sizeof({name}::{field.name}));")
            at = getattr(struct, field.name)
            expected.append(f"{name}.{field.name} {at.offset} {at.size}")
    assert compiled("int main() {\n" + "\n".join(lines) + "\n}\n", tmp_path).splitlines() == expected
    assert len(expected) > 200


def test_constants_and_signatures_are_the_compilers(tmp_path):
    lines = [f'static_assert({name} == {value}, "{name}");' for name, value in CONSTANTS.items()]
    for function in FUNCTIONS.values():
        declared = c_abi.signature(function, "(*)").replace(" noexcept nogil", "")
        lines.append(f"static_assert(std::is_same<decltype(&{function.name}), {declared}>::value, "
                     f'"{function.name}");')  # fmt: skip
    for name, fields in FIELDS.items():
        for field in fields:
            declared = (
                c_abi.signature(field.type, "(*)")
                if isinstance(field.type, c_abi.Function)
                else field.type + "".join(f"[{n}]" for n in field.extents)
            )
            declared = declared.replace(" noexcept nogil", "")
            lines.append(f"static_assert(std::is_same<decltype({name}::{field.name}), {declared}>"
                         f'::value, "{name}::{field.name}");')  # fmt: skip
    compiled("\n".join(lines) + "\nint main() {}\n", tmp_path)


def test_the_library_exports_the_entries_of_its_headers():
    library = ring_abi.library()
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", library._name], check=True, capture_output=True, text=True
    ).stdout
    assert set(re.findall(r" [TtWw] (\w+)", symbols)) == set(FUNCTIONS)


def is_pointer(kind):
    return kind in (ct.c_void_p, ct.c_char_p) or issubclass(kind, ct._Pointer)


def test_the_arguments_that_tests_declare_are_the_headers():
    library = host_peers.declare(ring_abi.library())
    checked = 0
    for name, function in FUNCTIONS.items():
        given = getattr(library, name).argtypes
        if given is None:
            continue
        stated = [ct.c_void_p if isinstance(a.type, c_abi.Function) else plain(a.type)
                  for a in function.arguments]  # fmt: skip
        assert len(given) == len(stated), name
        for mine, theirs in zip(given, stated, strict=True):
            assert mine is theirs or (is_pointer(mine) and is_pointer(theirs)), name
        checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    "text",
    ["typedef union x { int32_t a; } x;", "BARACUDA_API int32_t f(int32_t a;", "struct a { int b;"],
)
def test_a_header_in_another_style_is_refused(text, tmp_path):
    path = tmp_path / "odd.h"
    path.write_text(text)
    with pytest.raises(SyntaxError, match=r"odd\.h"):
        c_abi.read_header(path, {})
