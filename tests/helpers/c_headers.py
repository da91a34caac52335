"""The C ABI's structs and constants for ctypes, made from the headers (see cmake/c_abi.py)."""

from __future__ import annotations

import ctypes as ct
import importlib.util
import sys
from pathlib import Path
from typing import Any

_SCALARS = {
    "int32_t": ct.c_int32,
    "uint32_t": ct.c_uint32,
    "int64_t": ct.c_int64,
    "uint64_t": ct.c_uint64,
    "double": ct.c_double,
    "float": ct.c_float,
    "char": ct.c_char,
    "void": None,
}


def _reader() -> Any:
    path = Path(__file__).parents[2] / "cmake" / "c_abi.py"
    spec = importlib.util.spec_from_file_location("c_abi", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["c_abi"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


c_abi = _reader()
HEADERS = c_abi.read_headers()
FIELDS = {name: fields for header in HEADERS for name, fields in header.structs.items()}
FUNCTIONS = {name: f for header in HEADERS for name, f in header.functions.items()}
CONSTANTS = {name: value for header in HEADERS for name, value in header.constants.items()}
_STRUCTS: dict[str, Any] = {}


def constants(prefix: str, *names: str) -> list[int]:
    """The values of BARACUDA_<prefix>_<name> for each name."""
    return [CONSTANTS[f"BARACUDA_{prefix}{name}"] for name in names]


def structure(name: str, *bases: type, **types: Any) -> Any:
    """The ctypes struct ``baracuda_<name>``, made once.

    A pointer is a ``c_void_p`` and text a ``c_char_p``, except for the fields that ``types`` gives
    another pointer type. Only the first call for a struct may give ``types``.
    """
    assert not (types and name in _STRUCTS), f"{name} was made before, of other types"
    if name not in _STRUCTS:
        fields = FIELDS[f"baracuda_{name}"]
        unknown = types.keys() - {f.name for f in fields}
        assert not unknown, f"baracuda_{name} has no {unknown}"
        members = [(f.name, types.get(f.name) or _type_of(f)) for f in fields]
        _STRUCTS[name] = type(name, (*bases, ct.Structure), {"_fields_": members})
    return _STRUCTS[name]


def function_type(struct: str, field: str) -> Any:
    """The type of a field that points to a function.

    Its pointers are ``c_void_p``, except a ``void**``, which is a pointer to a ``c_void_p``.
    """
    function = next(f.type for f in FIELDS[f"baracuda_{struct}"] if f.name == field)
    arguments = (
        ct.POINTER(ct.c_void_p) if a.type == "void**" else _type_of(a) for a in function.arguments
    )
    return ct.CFUNCTYPE(plain(function.result), *arguments)


def plain(type_name: str) -> Any:
    """The ctypes type of a value that has no extents."""
    if type_name == "const char*":
        return ct.c_char_p
    if type_name.endswith("*"):
        return ct.c_void_p
    name = type_name.removeprefix("const ")
    return _SCALARS[name] if name in _SCALARS else structure(name.removeprefix("baracuda_"))


def _type_of(member: Any) -> Any:
    if isinstance(member.type, c_abi.Function):
        return ct.c_void_p
    kind = plain(member.type)
    for extent in reversed(member.extents):
        kind = kind * extent
    return kind
