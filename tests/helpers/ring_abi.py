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

from .c_headers import constants, function_type, structure
from .host_abi import Error, PositionMap

STATUS = (
    "OK", "INVALID_ARGUMENT", "UNSUPPORTED", "MISALIGNED", "UNAVAILABLE", "TIMEOUT", "ABORTED",
    "OUT_OF_MEMORY", "CUDA_ERROR", "NCCL_ERROR", "TRANSPORT_ERROR", "INTERRUPTED",
)  # fmt: skip
(OK, INVALID_ARGUMENT, UNSUPPORTED, MISALIGNED, UNAVAILABLE, TIMEOUT, ABORTED, OUT_OF_MEMORY,
 CUDA_ERROR, NCCL_ERROR, TRANSPORT_ERROR, INTERRUPTED) = constants("", *STATUS)  # fmt: skip
CONTIGUOUS, ZIGZAG, STRIPED = constants("", "CONTIGUOUS", "ZIGZAG", "STRIPED")
BESIDE, BEHIND = constants("RING_", "BESIDE", "BEHIND")
PAYLOADS, PIECES = constants("RING_MAX_", "PAYLOADS", "PIECES")

GroupFn = function_type("transport", "group_start")
MessageFn = function_type("transport", "send")
EventFn = function_type("stream_ops", "record")

AbortFn = function_type("transport", "abort")

Transport = structure(
    "transport",
    group_start=GroupFn, send=MessageFn, recv=MessageFn, group_end=GroupFn, abort=AbortFn,
)  # fmt: skip
StreamOps = structure(
    "stream_ops",
    record=EventFn,
    wait=EventFn,
    **{
        name: function_type("stream_ops", name)
        for name in ("copy", "clear", "event_create", "stream_create", "stream_synchronize")
    },
)
Exchange = structure("ring_exchange")
Endpoint = structure("ring_endpoint", ops=ct.POINTER(StreamOps))
Hop = structure("ring_hop")
Payload = structure("ring_payload")
Step = structure("ring_step", hops=ct.POINTER(Hop))
ProgramFn = ct.CFUNCTYPE(ct.c_int32, ct.c_void_p, ct.POINTER(Step))
Program = structure(
    "ring_program",
    **dict.fromkeys(("check", "is_live", "launch", "add", "settle"), ProgramFn),
)
AttentionProblem = structure("attention_ring_problem")
Call = structure(
    "ring_call",
    endpoint=ct.POINTER(Endpoint),
    hops=ct.POINTER(Hop),
    program=ct.POINTER(Program),
    payloads=ct.POINTER(Payload),
)
Message = structure("ring_message")
Round = structure("ring_round")


def attention_call(
    endpoint: Endpoint, stream: Any, hops: Any, problem: AttentionProblem, kv: Payload,
    program: Any = None,
) -> Call:  # fmt: skip
    """One rank's forward call. Its parts must be kept alive as long as the call."""
    return Call(
        struct_size=ct.sizeof(Call),
        endpoint=ct.pointer(endpoint),
        stream=stream,
        hops=ct.cast(hops, ct.POINTER(Hop)),
        program=library().baracuda_attention_ring_program() if program is None else program,
        problem=ct.addressof(problem),
        payloads=ct.pointer(kv),
        payload_count=1,
    )


def kv_payload(k: int, v: int, buffers: list[int], nbytes: int) -> Payload:
    """The payload of K and V at these addresses, with two receive buffers."""
    kv = Payload(timing=BESIDE, part=0, pieces=2)
    kv.own[:2], kv.buffers[:2], kv.piece_bytes[:2] = [k, v], buffers, [nbytes, nbytes]
    return kv


class Failure(NamedTuple):
    status: int
    code: int
    rank: int
    step: int
    call: str
    message: str


def last_failure() -> Failure:
    """The failure record of the calling thread."""
    e = library().baracuda_last_error().contents
    return Failure(e.status, e.code, e.rank, e.step, e.call.decode(), e.message.decode())


# Files that are built or copied here are removed with the process.
_folder = tempfile.TemporaryDirectory(prefix="baracuda-")


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=_folder.name))


def package_library() -> str:
    """The path of the installed package's library."""
    import baracuda_kernels as bk

    folders = [Path(folder) for folder in bk.__path__]
    return str(next(p for f in folders if (p := f / "libbaracuda_kernels.so").exists()))


@cache
def library() -> ct.CDLL:
    """The library under test: BARACUDA_TEST_LIBRARY, or the installed package's.

    A copy of it: its NCCL is a fake one, while the package's own, in the same process, may be real.
    """
    path = os.environ.get("BARACUDA_TEST_LIBRARY") or package_library()
    copied = _new_folder() / "libbaracuda_kernels.so"
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
    lib.baracuda_send_recv_exchange.restype = pointer
    lib.baracuda_attention_ring_program.restype = ct.POINTER(Program)
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
    lib.baracuda_nccl_all_gather.argtypes = [
        pointer, ct.c_char_p, ct.c_int64, pointer, seconds,
    ]  # fmt: skip
    lib.baracuda_nccl_refuse.argtypes = [pointer, integer, ct.c_char_p, integer]
    for name in (
        "rank", "world_size", "handle", "is_owned", "endpoint", "async_error", "abort", "destroy",
        "state", "disarm",
    ):  # fmt: skip
        getattr(lib, f"baracuda_nccl_{name}").argtypes = [pointer]
    return lib


_SOURCES = Path(__file__).parents[2] / "src" / "cuda"
# For helpers that include the forward pass's live steps.
LIVE_STEPS = (
    f"-I{_SOURCES}",
    *(str(_SOURCES / "attention" / name) for name in ("layout.cpp", "interval.cpp")),
)


@cache
def build_helper(source: str, *flags: str) -> str:
    """A helper of tests/helpers, built by the C++ compiler; the path of the shared library."""
    folder = Path(__file__).parent
    out = _new_folder() / f"lib{Path(source).stem}.so"
    options = os.environ.get("BARACUDA_TEST_CXXFLAGS", "").split()
    command = [
        os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-pthread",
        f"-I{_SOURCES / 'include'}", *options, *flags, str(folder / source), "-o", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return str(out)


@cache
def simulator() -> ct.CDLL:
    """Simulated streams (sim_streams.cpp)."""
    sim = ct.CDLL(build_helper("sim_streams.cpp", *LIVE_STEPS))
    sim.sim_stream_ops.restype = ct.POINTER(StreamOps)
    sim.sim_program.restype = ct.POINTER(Program)
    sim.sim_set_grid.argtypes = [ct.c_int64, ct.c_int64]
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
    """Copies of endpoints whose exchanges run on the callers' streams, between the steps."""
    copies = [Endpoint.from_buffer_copy(end) for end in endpoints]
    for copy, stream in zip(copies, streams, strict=True):
        copy.ring_stream = stream
    return copies


def plain_schedule(rank: int, world_size: int) -> Any:
    hops = (Hop * world_size)()
    library().baracuda_ring_schedule(rank, world_size, hops)
    return hops
