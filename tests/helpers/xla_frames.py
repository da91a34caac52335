"""XLA's call frames through ctypes, to call the handlers without JAX. The structs are XLA's."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    addressof,
    c_char_p,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)
from pathlib import Path
from typing import Any

import numpy as np

import baracuda_kernels as bk

HEAD = [("struct_size", c_size_t), ("extensions", c_void_p)]


class Version(Structure):
    _fields_ = [*HEAD, ("major", c_int32), ("minor", c_int32)]


class Metadata(Structure):
    _fields_ = [("struct_size", c_size_t), ("version", Version), ("traits", c_uint32)]


class Extension(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("type", c_int32),
        ("next", c_void_p),
        ("metadata", POINTER(Metadata)),
    ]


class ErrorArgs(Structure):
    _fields_ = [*HEAD, ("message", c_char_p), ("code", c_int32)]


CREATE = ctypes.CFUNCTYPE(c_void_p, POINTER(ErrorArgs))


class StreamArgs(Structure):
    _fields_ = [*HEAD, ("context", c_void_p), ("stream", c_void_p)]


GET_STREAM = ctypes.CFUNCTYPE(c_void_p, POINTER(StreamArgs))


class Api(Structure):
    _fields_ = [
        *HEAD,
        ("version", Version),
        ("internal", c_void_p),
        ("error_create", CREATE),
        ("others", c_void_p * 3),
        ("get_stream", GET_STREAM),
    ]


class Values(Structure):
    _fields_ = [*HEAD, ("size", c_int64), ("types", c_void_p), ("values", c_void_p)]


class Attributes(Structure):
    _fields_ = [
        *HEAD,
        ("size", c_int64),
        ("types", c_void_p),
        ("names", c_void_p),
        ("values", c_void_p),
    ]


class Frame(Structure):
    _fields_ = [
        *HEAD,
        ("api", POINTER(Api)),
        ("context", c_void_p),
        ("stage", c_int32),
        ("operands", Values),
        ("results", Values),
        ("attributes", Attributes),
    ]


class Buffer(Structure):
    _fields_ = [
        *HEAD,
        ("dtype", c_int32),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", c_void_p),
    ]


class Scalar(Structure):
    _fields_ = [("dtype", c_int32), ("value", c_void_p)]


class Text(Structure):
    _fields_ = [("data", c_char_p), ("size", c_size_t)]


XLA_TYPES = {"float32": 11, "uint32": 8, "float64": 12, "int64": 5, "bfloat16": 16}


def handler(name: str) -> Any:
    """The built library's handler of this name."""
    folder = next(p for p in map(Path, bk.__path__) if (p / "libbaracuda_kernels.so").exists())
    function = getattr(ctypes.CDLL(str(folder / "libbaracuda_kernels.so")), name)
    function.argtypes, function.restype = [c_void_p], c_void_p
    return function


class Call:
    """A call frame over NumPy arrays or torch tensors, and the errors that were made of it."""

    def __init__(self, operands=(), results=(), attributes=None, minor=3, stream=None):
        self.errors, self.held = [], [operands, results]

        def create(args):
            self.errors.append((args.contents.code, args.contents.message.decode()))
            return len(self.errors)

        def get_stream(args):
            args.contents.stream = stream

        version = Version(ctypes.sizeof(Version), None, 0, minor)
        self.create, self.get_stream = CREATE(create), GET_STREAM(get_stream)
        self.api = Api(
            ctypes.sizeof(Api), None, version, None, self.create, get_stream=self.get_stream
        )
        self.frame = Frame(struct_size=ctypes.sizeof(Frame), api=ctypes.pointer(self.api))
        self.frame.operands = self.values(operands)
        self.frame.results = self.values(results)
        names, values, types = [], [], []
        for name, value in sorted((attributes or {}).items()):
            number = np.array(value)
            scalar = Scalar(XLA_TYPES[number.dtype.name], number.ctypes.data)
            text = Text(name.encode(), len(name))
            self.held += [number, scalar, text]
            names.append(addressof(text))
            values.append(addressof(scalar))
            types.append(3)
        self.frame.attributes = Attributes(
            ctypes.sizeof(Attributes),
            None,
            len(names),
            self.array(c_int32, types),
            self.array(c_void_p, names),
            self.array(c_void_p, values),
        )

    def array(self, kind, items):
        made = (kind * max(1, len(items)))(*items)
        self.held.append(made)
        return addressof(made)

    def values(self, arrays):
        buffers = [
            Buffer(
                ctypes.sizeof(Buffer),
                None,
                XLA_TYPES[str(x.dtype).removeprefix("torch.")],
                x.ctypes.data if isinstance(x, np.ndarray) else x.data_ptr(),
                x.ndim,
                self.array(c_int64, x.shape),
            )
            for x in arrays
        ]
        self.held += buffers
        return Values(
            ctypes.sizeof(Values),
            None,
            len(buffers),
            self.array(c_int32, [1] * len(buffers)),
            self.array(c_void_p, [addressof(b) for b in buffers]),
        )

    def __call__(self, handler):
        return handler(addressof(self.frame))
