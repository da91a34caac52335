"""The two mirrors of XLA's C ABI: the handlers' header is jaxlib's, and the tests' frames are the header."""

import ctypes
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from helpers import xla_frames

SOURCES = Path(__file__).parents[2] / "src" / "cuda"
HEADER = SOURCES / "interop" / "xla_ffi_abi.h"

# Our name, XLA's, and XLA's names of our fields. Of some structs we know only the first ones.
STRUCTS = [
    ("ApiVersion", "Api_Version", "struct_size extension_start major_version minor_version"),
    ("Metadata", "Metadata", "struct_size api_version traits"),
    ("MetadataExtension", "Metadata_Extension", "extension_base metadata"),
    ("Extension", "Extension_Base", "struct_size type next"),
    ("ErrorCreateArgs", "Error_Create_Args", "struct_size extension_start message errc"),
    ("StreamGetArgs", "Stream_Get_Args", "struct_size extension_start ctx stream"),
    ("Api", "Api", ("struct_size extension_start api_version internal_api XLA_FFI_Error_Create "
     "XLA_FFI_Error_GetMessage XLA_FFI_Stream_Get")),
    ("Buffer", "Buffer", "struct_size extension_start dtype data rank dims"),
    ("Scalar", "Scalar", "dtype value"),
    ("Text", "ByteSpan", "ptr len"),
    ("Values", "Args", "struct_size extension_start size types args"),
    ("Values", "Rets", "struct_size extension_start size types rets"),
    ("Attributes", "Attrs", "struct_size extension_start size types names attrs"),
    ("CallFrame", "CallFrame", "struct_size extension_start api ctx stage args rets attrs"),
]  # fmt: skip
GROWING = ("Api", "CallFrame", "Metadata")
CONSTANTS = {
    "kMetadata": "Extension_Metadata",
    "kBuffer": "ArgType_BUFFER",
    "kScalar": "AttrType_SCALAR",
    "kCommandBufferCompatible": "HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE",
    **{f"k{name}": f"DataType_{name}" for name in ("S64", "U32", "F16", "F32", "F64", "BF16")},
    "kInvalidArgument": "Error_Code_INVALID_ARGUMENT",
    "kResourceExhausted": "Error_Code_RESOURCE_EXHAUSTED",
    "kUnimplemented": "Error_Code_UNIMPLEMENTED",
    "kInternal": "Error_Code_INTERNAL",
}


def fields_of(struct):
    body = re.search(rf"^struct {struct} \{{(.*?)^\}};", HEADER.read_text(), re.DOTALL | re.MULTILINE)[1]
    body = re.sub(r"//.*", "", body)
    return re.findall(r"\(\*(\w+)\)|(\w+)(?:\[\d+\])?;", body)


def compiled(body, tmp_path, *includes):
    source, program = tmp_path / "abi.cpp", tmp_path / "abi"
    source.write_text(f'#include <cstdio>\n#include "interop/xla_ffi_abi.h"\n{body}')
    subprocess.run(
        ["g++", "-std=c++17", f"-I{SOURCES}", *includes, "-o", program, source],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


@pytest.mark.framework("jax")
def test_the_header_is_jaxlibs(tmp_path):
    include = Path(importlib.util.find_spec("jaxlib").submodule_search_locations[0]) / "include"
    lines = []
    for ours, theirs, names in STRUCTS:
        mine, its = f"baracuda::xla::{ours}", f"XLA_FFI_{theirs}"
        fields = [name or pointer for pointer, name in fields_of(ours)]
        for field, name in zip(fields, names.split(), strict=True):
            lines.append(f"static_assert(offsetof({mine}, {field}) == offsetof({its}, {name}));")
        compare = "<=" if ours in GROWING else "=="
        lines.append(f"static_assert(sizeof({mine}) {compare} sizeof({its}));")
    lines += [f"static_assert(int(baracuda::xla::{ours}) == int(XLA_FFI_{theirs}));"
              for ours, theirs in CONSTANTS.items()]  # fmt: skip
    declared = re.findall(r"\b(k\w+) = \d+[,; ]", re.sub(r"constexpr.*", "", HEADER.read_text()))
    assert sorted(declared) == sorted(CONSTANTS)
    body = '#include "xla/ffi/api/c_api.h"\n' + "\n".join(lines) + "\nint main() {}\n"
    compiled(body, tmp_path, f"-I{include}")


FRAMES = {
    "ApiVersion": xla_frames.Version,
    "Metadata": xla_frames.Metadata,
    "ErrorCreateArgs": xla_frames.ErrorArgs,
    "StreamGetArgs": xla_frames.StreamArgs,
    "Api": xla_frames.Api,
    "Values": xla_frames.Values,
    "Attributes": xla_frames.Attributes,
    "CallFrame": xla_frames.Frame,
    "Buffer": xla_frames.Buffer,
    "Scalar": xla_frames.Scalar,
    "Text": xla_frames.Text,
}


def test_the_frames_are_the_header(tmp_path):
    lines, expected = [], []
    for name, frame in FRAMES.items():
        fields = [field or pointer for pointer, field in fields_of(name)]
        struct = f"baracuda::xla::{name}"
        for field, (mine, _) in zip(fields, frame._fields_, strict=True):
            lines.append(f'std::printf("{name}.{field} %zu %zu\\n", offsetof({struct}, {field}), '
                         f"sizeof({struct}::{field}));")  # fmt: skip
            at = getattr(frame, mine)
            expected.append(f"{name}.{field} {at.offset} {at.size}")
        lines.append(f'std::printf("{name} %zu\\n", sizeof({struct}));')
        expected.append(f"{name} {ctypes.sizeof(frame)}")
    lines.append('std::printf("%zu\\n", sizeof(baracuda::xla::MetadataExtension));')
    expected.append(str(ctypes.sizeof(xla_frames.Extension)))
    assert compiled("int main() {\n" + "\n".join(lines) + "\n}\n", tmp_path).splitlines() == expected
