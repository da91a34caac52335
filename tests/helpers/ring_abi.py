"""The C ABI of the ring, of NCCL and of streams through ctypes, and the native test helpers."""

from __future__ import annotations

import ctypes as ct
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from native.host_abi import Error, Params, PositionMap, make_params

(OK, INVALID_ARGUMENT, UNSUPPORTED, MISALIGNED, UNAVAILABLE, TIMEOUT, ABORTED, OUT_OF_MEMORY,
 CUDA_ERROR, NCCL_ERROR, TRANSPORT_ERROR) = range(11)  # fmt: skip
CAUSAL = 4
CONTIGUOUS, ZIGZAG, STRIPED = range(3)

GroupFn = ct.CFUNCTYPE(ct.c_int32, ct.c_void_p)
MessageFn = ct.CFUNCTYPE(ct.c_int32, ct.c_void_p, ct.c_void_p, ct.c_int64, ct.c_int32, ct.c_void_p)


class Transport(ct.Structure):
    _fields_ = [
        ("struct_size", ct.c_uint64),
        ("context", ct.c_void_p),
        ("rank", ct.c_int32),
        ("world_size", ct.c_int32),
        ("group_start", GroupFn),
        ("send", MessageFn),
        ("recv", MessageFn),
        ("group_end", GroupFn),
    ]


EventFn = ct.CFUNCTYPE(ct.c_int32, ct.c_void_p, ct.c_void_p)


class StreamOps(ct.Structure):
    _fields_ = [
        ("struct_size", ct.c_uint64),
        ("set_device", ct.c_void_p),
        ("record", EventFn),
        ("wait", EventFn),
        ("copy", ct.CFUNCTYPE(ct.c_int32, ct.c_void_p, ct.c_void_p, ct.c_int64, ct.c_void_p)),
        ("launch", ct.c_void_p),
        ("event_create", ct.c_void_p),
        ("event_destroy", ct.c_void_p),
        ("stream_create", ct.CFUNCTYPE(ct.c_int32, ct.POINTER(ct.c_void_p), ct.c_int32)),
        ("stream_destroy", ct.c_void_p),
        ("get_device", ct.c_void_p),
        ("stream_synchronize", ct.c_void_p),
        ("timed_event_create", ct.c_void_p),
        ("elapsed", ct.c_void_p),
    ]


class Endpoint(ct.Structure):
    _fields_ = [
        ("struct_size", ct.c_uint64),
        ("transport", Transport),
        ("ops", ct.POINTER(StreamOps)),
        ("device", ct.c_int32),
        ("max_ctas", ct.c_int32),
        ("ring_stream", ct.c_void_p),
        ("compute_done", ct.c_void_p),
        ("exchange_done", ct.c_void_p * 2),
        ("steps_enqueued", ct.c_int32),
        ("in_clusters", ct.c_int32),
    ]


class Hop(ct.Structure):
    _fields_ = [(n, ct.c_int32) for n in ("origin", "send_to", "recv_from")]


class Call(ct.Structure):
    _fields_ = [
        ("struct_size", ct.c_uint64),
        ("endpoint", ct.POINTER(Endpoint)),
        ("stream", ct.c_void_p),
        ("kernel", ct.c_int32),
        ("layout", ct.c_int32),
        ("hops", ct.POINTER(Hop)),
        ("step", Params),
        ("message_bytes", ct.c_int64),
        ("receive", ct.c_void_p * 2),
        ("marks", ct.c_void_p),
    ]


class Failure(NamedTuple):
    status: int
    code: int
    rank: int
    step: int
    call: str
    message: str


def last_failure() -> Failure:
    """The calling thread's record."""
    e = library().baracuda_last_error().contents
    return Failure(e.status, e.code, e.rank, e.step, e.call.decode(), e.message.decode())


@cache
def library() -> ct.CDLL:
    """The library under test: BARACUDA_TEST_LIBRARY, or the installed package's.

    A copy of it: its NCCL is a fake one, while the package's own, in the same process, may be real.
    """
    path = os.environ.get("BARACUDA_TEST_LIBRARY")
    if path is None:
        import baracuda_kernels as bk

        folders = [Path(folder) for folder in bk.__path__]
        path = str(next(p for f in folders if (p := f / "libbaracuda_kernels.so").exists()))
    copied = Path(tempfile.mkdtemp(prefix="baracuda-")) / "libbaracuda_kernels.so"
    shutil.copyfile(path, copied)
    lib = ct.CDLL(str(copied))
    pointer, seconds, integer = ct.c_void_p, ct.c_double, ct.c_int32
    lib.baracuda_last_error.restype = ct.POINTER(Error)
    lib.baracuda_host_stream_ops.restype = ct.POINTER(StreamOps)
    lib.baracuda_layout_map.restype = PositionMap
    lib.baracuda_layout_map.argtypes = [integer, integer, integer, ct.c_int64]
    lib.baracuda_local_world_create.argtypes = [integer, seconds, ct.POINTER(pointer)]
    lib.baracuda_local_world_abort.argtypes = [pointer]
    lib.baracuda_local_world_destroy.argtypes = [pointer]
    lib.baracuda_local_transport.argtypes = [pointer, integer, ct.POINTER(Endpoint)]
    lib.baracuda_ring_run.argtypes = [ct.POINTER(Call), integer]
    lib.baracuda_nccl_path.restype = ct.c_char_p
    lib.baracuda_nccl_endpoint.restype = ct.POINTER(Endpoint)
    lib.baracuda_nccl_handle.restype = pointer
    comm = ct.POINTER(pointer)
    lib.baracuda_nccl_init_rank.argtypes = [
        integer, ct.c_char_p, integer, integer, integer, seconds, comm,
    ]  # fmt: skip
    lib.baracuda_nccl_init_all.argtypes = [
        integer, ct.POINTER(integer), integer, seconds, comm,
    ]  # fmt: skip
    lib.baracuda_nccl_from_handle.argtypes = [pointer, integer, seconds, comm]
    lib.baracuda_nccl_split.argtypes = [pointer, integer, integer, seconds, comm]
    lib.baracuda_nccl_synchronize.argtypes = [pointer, pointer, seconds]
    lib.baracuda_nccl_arm.argtypes = [pointer, seconds]
    for name in (
        "rank", "world_size", "handle", "is_owned", "endpoint", "async_error", "abort", "destroy",
        "state", "disarm",
    ):  # fmt: skip
        getattr(lib, f"baracuda_nccl_{name}").argtypes = [pointer]
    return lib


@cache
def build_helper(source: str, *flags: str) -> str:
    """A helper of tests/helpers, built by the C++ compiler; the path of the shared library."""
    folder = Path(__file__).parent
    include = folder.parents[1] / "src" / "cuda" / "include"
    out = Path(tempfile.mkdtemp(prefix="baracuda-")) / f"lib{Path(source).stem}.so"
    options = os.environ.get("BARACUDA_TEST_CXXFLAGS", "").split()
    command = [
        os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-pthread",
        f"-I{include}", *options, *flags, str(folder / source), "-o", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return str(out)


@cache
def simulator() -> ct.CDLL:
    """Simulated streams (sim_streams.cpp)."""
    sim = ct.CDLL(build_helper("sim_streams.cpp"))
    sim.sim_stream_ops.restype = ct.POINTER(StreamOps)
    sim.sim_log.restype = ct.c_char_p
    sim.sim_reset.argtypes = [ct.c_void_p, ct.c_int, ct.c_int]
    return sim


def reset_simulator(dropped_wait: int = 0, count: int = 0) -> None:
    step = ct.cast(library().baracuda_attention_step, ct.c_void_p)
    simulator().sim_reset(step, dropped_wait, count)


@cache
def fake_nccl() -> ct.CDLL:
    """The fake NCCL (fake_nccl.cpp), bound by the library under test."""
    path = build_helper("fake_nccl.cpp")
    assert library().baracuda_nccl_load(path.encode()) == OK, last_failure()
    fake = ct.CDLL(path)
    fake.fake_nccl_count.restype = ct.c_int64
    fake.fake_nccl_set_async_error.argtypes = [ct.c_void_p, ct.c_int]
    return fake


def in_new_process(body: str, *arguments: str, preload: str = "") -> None:
    """Runs body with abi and lib at hand: NCCL is bound once per process."""
    code = f"import sys, ctypes as ct\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n" + (
        "from helpers import ring_abi as abi\nlib = abi.library()\n" + textwrap.dedent(body)
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | ({"LD_PRELOAD": preload} if preload else {}),
    )
    assert done.returncode == 0, done.stderr


class LocalWorld:
    """A local world and the open endpoints of its ranks."""

    def __init__(self, world_size: int, ops: Any = None, timeout: float = 20.0) -> None:
        self.lib = library()
        self.ops = self.lib.baracuda_host_stream_ops() if ops is None else ops
        self.handle = ct.c_void_p()
        assert self.lib.baracuda_local_world_create(world_size, timeout, self.handle) == OK
        self.endpoints = []
        for rank in range(world_size):
            end = Endpoint(struct_size=ct.sizeof(Endpoint), device=-1, ops=self.ops)
            assert self.lib.baracuda_local_transport(self.handle, rank, end) == OK
            assert self.lib.baracuda_ring_endpoint_open(ct.byref(end)) == OK
            self.endpoints.append(end)

    def close(self) -> None:
        for end in self.endpoints:
            assert self.lib.baracuda_ring_endpoint_close(ct.byref(end)) == OK
        assert self.lib.baracuda_local_world_destroy(self.handle) == OK


def without_overlap(endpoints: list[Endpoint], streams: list[Any]) -> list[Endpoint]:
    """Copies of endpoints whose exchanges go to the callers' own streams, in line with the steps."""
    copies = [Endpoint.from_buffer_copy(end) for end in endpoints]
    for copy, stream in zip(copies, streams, strict=True):
        copy.ring_stream = stream
    return copies


def plain_schedule(rank: int, world_size: int) -> Any:
    hops = (Hop * world_size)()
    library().baracuda_ring_schedule(rank, world_size, hops)
    return hops


class Problem:
    """Random shards of one ring in f64, and their calls."""

    def __init__(
        self,
        world_size: int,
        layout: int,
        causal: bool,
        *,
        query_len: int = 5,
        key_len: int = 5,
        shape: tuple[int, int, int, int] = (1, 2, 1, 4),
        staged: bool = True,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        batch, heads, kv_heads, dim = shape
        self.world_size, self.layout, self.causal, self.staged = world_size, layout, causal, staged
        self.q = rng.standard_normal((world_size, batch, heads, query_len, dim))
        self.k = rng.standard_normal((world_size, batch, kv_heads, key_len, dim))
        self.v = rng.standard_normal((world_size, batch, kv_heads, key_len, dim))
        state = batch * heads * query_len * (dim + 2)
        self.y, self.lse = np.empty_like(self.q), np.empty(self.q.shape[:4])
        self.state = np.empty((world_size, max(state, 1)))
        self.receive = np.empty((world_size, 2, 2, *self.k.shape[1:]))
        self.hops: dict[int, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Poisons outputs and scratch, stages K and V."""
        self.y[:] = self.lse[:] = 77.0
        self.state[:] = self.receive[:] = np.nan
        if self.staged:
            self.receive[:, 0, 0] = self.k
            self.receive[:, 0, 1] = self.v

    def call(self, rank: int, endpoint: Endpoint, stream: Any = None, hops: Any = None) -> Call:
        buffers = self.receive[rank]
        k, v = (buffers[0, 0], buffers[0, 1]) if self.staged else (self.k[rank], self.v[rank])
        step = make_params(
            self.q[rank], k, v, self.y[rank], self.lse[rank], self.state[rank],
            element="f64", lse_element="f64", flags=CAUSAL if self.causal else 0,
        )  # fmt: skip
        self.hops[rank] = plain_schedule(rank, self.world_size) if hops is None else hops
        return Call(
            struct_size=ct.sizeof(Call),
            endpoint=ct.pointer(endpoint),
            stream=stream,
            kernel=0,
            layout=self.layout,
            hops=ct.cast(self.hops[rank], ct.POINTER(Hop)),
            step=step,
            message_bytes=k.nbytes,
            receive=(ct.c_void_p * 2)(buffers[0].ctypes.data, buffers[1].ctypes.data),
        )

    def calls(self, endpoints: list[Endpoint], streams: Any = None) -> Any:
        streams = [None] * self.world_size if streams is None else streams
        made = [self.call(r, endpoints[r], streams[r]) for r in range(self.world_size)]
        return (Call * self.world_size)(*made)

    def positions(self, rank: int, length: int) -> np.ndarray:
        """Of a shard's rows, from the definition of the layouts."""
        p, half, i = self.world_size, (length + 1) // 2, np.arange(length)
        if self.layout == CONTIGUOUS:
            return rank * length + i
        if self.layout == STRIPED:
            return i * p + rank
        tail = p * half + (p - 1 - rank) * (length - half)
        return np.where(i < half, rank * half + i, tail + i - half)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        ranks = range(self.world_size)
        group = self.q.shape[2] // self.k.shape[2]
        k, v = (np.repeat(np.concatenate(list(x), axis=2), group, axis=1) for x in (self.k, self.v))
        k_pos = np.concatenate([self.positions(r, self.k.shape[3]) for r in ranks])
        y, lse = np.empty_like(self.q), np.empty_like(self.lse)
        for r in ranks:
            s = np.einsum("bhqd,bhkd->bhqk", self.q[r], k) / np.sqrt(self.q.shape[-1])
            if self.causal:
                s = np.where(k_pos <= self.positions(r, self.q.shape[3])[:, None], s, -np.inf)
            m = s.max(-1, keepdims=True, initial=-1e300)
            e = np.exp(s - m)
            total = e.sum(-1, keepdims=True)
            with np.errstate(divide="ignore"):
                lse[r] = (np.log(total) + m)[..., 0]
            y[r] = np.einsum("bhqk,bhkd->bhqd", e, v) / np.where(total == 0, 1, total)
        return y, lse

    def is_right(self) -> bool:
        y, lse = self.expected()
        return np.allclose(self.y, y, rtol=1e-11, atol=1e-12) and np.allclose(
            self.lse, lse, rtol=1e-11, atol=1e-12
        )
