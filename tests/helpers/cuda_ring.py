"""Ring calls on a GPU through the C ABI: changed stream tables, and NCCL from a rank to itself.

NCCL refuses two ranks on one GPU in one process, but a rank may send to itself. So a world of one
rank that the loop takes for a rank of P runs every exchange as an NCCL kernel on one card. The rank
receives what it sent.
"""

from __future__ import annotations

import ctypes as ct
from collections.abc import Callable
from typing import Any

from . import ring_abi as abi
from .host_abi import CAUSAL, Params

FAMILIES = {"simt": 1, "sm80": 2, "sm90a": 3}
ELEMENTS = {"float16": 0, "bfloat16": 1, "float32": 2}


def cuda_ops() -> Any:
    """The library's own table of CUDA streams and events."""
    lib = abi.library()
    lib.baracuda_cuda_stream_ops.restype = ct.POINTER(abi.StreamOps)
    return lib.baracuda_cuda_stream_ops()


def check(status: int) -> None:
    assert status == abi.OK, abi.last_failure()


class RankTensors:
    """One rank's operands on the GPU, K and V staged in the first of two receive buffers."""

    def __init__(self, torch: Any, q: Any, k: Any, v: Any, *, family: str) -> None:
        self.q, self.kv, self.family = q, torch.stack([k, v]), family
        self.y = torch.full_like(q, float("nan"))
        self.lse = torch.full(q.shape[:3], float("nan"), device=q.device)
        self.buffers = torch.full((2, *self.kv.shape), float("nan"), dtype=q.dtype, device=q.device)
        rows = -(-q.shape[2] // 128) * 128
        size = q.shape[0] * q.shape[1] * rows * (q.shape[3] + 2)
        self.state = torch.full((size,), float("nan"), device=q.device)
        self.calls: list[tuple[abi.AttentionProblem, abi.Payload]] = []

    def stage(self) -> None:
        """K and V into their buffer, on the current stream."""
        self.buffers[0].copy_(self.kv)

    def step(self, *, causal: bool = False) -> Params:
        """The attention step's parameters."""
        b, h, rows, d = self.q.shape
        hkv, keys = self.kv.shape[2:4]
        p = Params(struct_size=ct.sizeof(Params), flags=CAUSAL if causal else 0)
        p.element = ELEMENTS[str(self.q.dtype).rpartition(".")[2]]
        p.lse_element = 2
        p.batch, p.heads, p.kv_heads, p.query_len, p.key_len, p.head_dim = b, h, hkv, rows, keys, d
        p.scale = d**-0.5
        p.q, p.y, p.lse = self.q.data_ptr(), self.y.data_ptr(), self.lse.data_ptr()
        p.k, p.v = (self.buffers[0, i].data_ptr() for i in range(2))
        p.state = self.state.data_ptr()
        for name, (heads, length) in {"q": (h, rows), "k": (hkv, keys), "v": (hkv, keys),
                                      "y": (h, rows)}.items():  # fmt: skip
            strides = getattr(p, name + "_strides")
            strides.batch, strides.head, strides.seq = heads * length * d, length * d, d
        return p

    def call(self, endpoint: Any, stream: int, hops: Any, *, layout: int = 0,
             causal: bool = False, program: Any = None) -> abi.Call:  # fmt: skip
        """The rank's part of a run; its problem and payload are the last of `calls`."""
        step = self.step(causal=causal)
        lib = abi.library()
        lib.baracuda_attention_load.argtypes = [ct.c_int32, ct.POINTER(Params)]
        check(lib.baracuda_attention_load(FAMILIES[self.family], step))
        problem = abi.AttentionProblem(
            struct_size=ct.sizeof(abi.AttentionProblem),
            kernel=FAMILIES[self.family],
            layout=layout,
            step=step,
        )
        nbytes = self.kv[0].numel() * self.kv.element_size()
        buffers = [self.buffers[i].data_ptr() for i in range(2)]
        kv = abi.kv_payload(step.k, step.v, buffers, nbytes)
        self.calls.append((problem, kv))
        return abi.attention_call(endpoint, stream, hops, problem, kv, program)


class SelfRing:
    """A NCCL communicator of one rank, and an endpoint of it that counts `world_size` ranks."""

    def __init__(self, world_size: int, *, max_ctas: int = 8, ops: Any = None) -> None:
        from baracuda_kernels._core import _nccl_library

        self.lib = abi.library()
        check(self.lib.baracuda_nccl_load(_nccl_library.library_path().encode()))
        token = ct.create_string_buffer(128)
        check(self.lib.baracuda_nccl_unique_id(token))
        self.comm = ct.c_void_p()
        check(self.lib.baracuda_nccl_init_rank(1, token.raw, 0, 0, max_ctas, 60.0, self.comm))
        own = self.lib.baracuda_nccl_endpoint(self.comm).contents
        self.endpoint = abi.Endpoint.from_buffer_copy(own)
        self.endpoint.transport.world_size = world_size
        if ops is not None:
            self.endpoint.ops = ops
        self.hops = (abi.Hop * world_size)(*(abi.Hop(s, 0, 0) for s in range(world_size)))

    def close(self) -> None:
        check(self.lib.baracuda_nccl_destroy(self.comm))


class IdleRing:
    """Rank 0 of a ring that sends no messages, on CUDA streams: only its steps run."""

    def __init__(self, world_size: int, *, max_ctas: int, in_clusters: bool = False) -> None:
        self.lib = abi.library()
        nothing = abi.GroupFn(lambda _: abi.OK)
        message = abi.MessageFn(lambda *_: abi.OK)
        self.endpoint = abi.Endpoint(
            struct_size=ct.sizeof(abi.Endpoint),
            transport=abi.Transport(
                struct_size=ct.sizeof(abi.Transport), rank=0, world_size=world_size,
                group_start=nothing, send=message, recv=message, group_end=nothing,
            ),
            ops=cuda_ops(),
            device=0,
            max_ctas=max_ctas,
            in_clusters=int(in_clusters),
        )  # fmt: skip
        check(self.lib.baracuda_ring_endpoint_open(ct.byref(self.endpoint)))
        self.hops = abi.plain_schedule(0, world_size)

    def close(self) -> None:
        check(self.lib.baracuda_ring_endpoint_close(ct.byref(self.endpoint)))


class Disturbed:
    """The CUDA stream table and the forward's program, with delays before kernels and copies and
    after waits, and with one wait left out.

    Parameters
    ----------
    delay : callable
        ``delay(stream)``, called before every kernel and copy, and after every wait.
    poison : callable
        ``poison(stream)``, called after every wait, before its delay.
    """

    def __init__(self, delay: Callable[[int], None], poison: Callable[[int], None]) -> None:
        self.real = cuda_ops().contents
        self.forward = abi.library().baracuda_attention_ring_program().contents
        self.waits, self.dropped = 0, -1

        def wait(stream: int, event: int) -> int:
            number, self.waits = self.waits, self.waits + 1
            status = abi.OK if number == self.dropped else self.real.wait(stream, event)
            poison(stream)
            delay(stream)
            return status

        def copy(into: int, source: int, count: int, stream: int) -> int:
            delay(stream)
            return self.real.copy(into, source, count, stream)

        def launch(problem: int, at: Any) -> int:
            delay(at.contents.stream)
            return self.forward.launch(problem, at)

        self._held = abi.EventFn(wait), type(self.real.copy)(copy), abi.ProgramFn(launch)
        self.table = abi.StreamOps.from_buffer_copy(self.real)
        self.table.wait, self.table.copy = self._held[:2]
        self._program = abi.Program.from_buffer_copy(self.forward)
        self._program.launch = self._held[2]

    @property
    def ops(self) -> Any:
        return ct.pointer(self.table)

    @property
    def program(self) -> Any:
        return ct.pointer(self._program)

    def reset(self, dropped: int) -> None:
        self.waits, self.dropped = 0, dropped
