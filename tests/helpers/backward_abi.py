"""The backward entries of the C ABI through ctypes: one step for each chunk of keys, in any layout.

Arrays are NumPy's (the host family) or torch tensors on a GPU.
"""

from __future__ import annotations

import ctypes as ct
from typing import Any

import numpy as np

from . import ring_abi as abi
from .c_headers import structure
from .gradients import Problem, dtype_of
from .host_abi import CAUSAL, ELEMENT, FIRST, LAST, Params, PositionMap, Strides

BackwardParams = structure("attention_backward_params")


def library() -> Any:
    lib = abi.library()
    for name in ("prepare", "step"):
        entry = getattr(lib, f"baracuda_attention_backward_{name}")
        entry.argtypes = [ct.c_int32, ct.POINTER(BackwardParams), ct.c_void_p]
    lib.baracuda_attention_backward_scratch_bytes.argtypes = [ct.c_int32, ct.POINTER(Params)]
    lib.baracuda_attention_backward_scratch_bytes.restype = ct.c_int64
    lib.baracuda_attention_backward_second.argtypes = [ct.c_int32]
    return lib


def check(status: int) -> None:
    assert status == abi.OK, abi.last_failure()


def pointer(x: Any) -> int | None:
    if x is None:
        return None
    return x.ctypes.data if isinstance(x, np.ndarray) else x.data_ptr()


def strides(x: Any) -> Strides:
    if isinstance(x, np.ndarray):
        return Strides(*(s // x.itemsize for s in x.strides[:3]))
    return Strides(*x.stride()[:3])


class Steps:
    """A backward call of several steps, one for each chunk of keys.

    x has the rows' operands; x.k and x.v are not read. y and lse are the forward's over all chunks.
    """

    def __init__(self, x: Problem, y: Any, lse: Any, *, kernel: int, kv_heads: int, dq: Any,
                 scale: float, causal: bool, q_map: PositionMap, stream: int | None = None,
                 scratch: Any = None, sm_margin: int = 0) -> None:  # fmt: skip
        self.lib, self.kernel, self.stream = library(), kernel, stream
        self.held = (x, y, lse, dq, scratch)
        p = self.params = BackwardParams(struct_size=ct.sizeof(BackwardParams))
        s = p.step
        s.struct_size = ct.sizeof(Params)
        s.element = ELEMENT[dtype_of(x.q)]
        s.lse_element = ELEMENT["f64" if dtype_of(x.q) == "f64" else "f32"]
        s.flags, s.sm_margin = CAUSAL if causal else 0, sm_margin
        s.batch, s.heads, s.query_len, s.head_dim = x.q.shape
        s.kv_heads, s.scale, s.q_map = kv_heads, scale, q_map
        s.q, s.y, s.lse, s.state = (pointer(a) for a in (x.q, y, lse, scratch))
        s.q_strides, s.y_strides = strides(x.q), strides(y)
        p.dy, p.dlse, p.dq = (pointer(a) for a in (x.dy, x.dlse, dq))
        p.dy_strides, p.dq_strides, p.lse_strides = strides(x.dy), strides(dq), strides(lse)
        if x.dlse is not None:
            p.dlse_strides = strides(x.dlse)

    def scratch_bytes(self) -> int:
        """Bytes of scratch of a call of several steps."""
        return int(self.lib.baracuda_attention_backward_scratch_bytes(
            self.kernel, ct.byref(self.params.step)))

    def prepare(self) -> None:
        check(self.lib.baracuda_attention_backward_prepare(
            self.kernel, ct.byref(self.params), self.stream))

    def bind_keys(self, k: Any, v: Any, dk: Any, dv: Any, k_map: PositionMap) -> None:
        """Give the next step its chunk, and the memory of the chunk's gradients."""
        p, s = self.params, self.params.step
        self.chunk = (k, v, dk, dv)
        s.key_len, s.k_map = k.shape[2], k_map
        s.k, s.v, p.dk, p.dv = (pointer(a) for a in self.chunk)
        s.k_strides, s.v_strides = strides(k), strides(v)
        p.dk_strides, p.dv_strides = strides(dk), strides(dv)
        p.kv_gradient_element = ELEMENT[dtype_of(dk)]

    def step(self, *, first: bool, last: bool) -> None:
        flags = self.params.step.flags
        self.params.step.flags |= (FIRST if first else 0) | (LAST if last else 0)
        check(self.lib.baracuda_attention_backward_step(
            self.kernel, ct.byref(self.params), self.stream))
        self.params.step.flags = flags


def ring_gradients(x: Problem, y: Any, lse: Any, world_size: int, layout: int, *, kernel: int,
                   causal: bool, empty: Any, place: Any, stream: int | None = None,
                   sm_margin: int = 0) -> Any:  # fmt: skip
    """dq, dk, dv of a whole sequence, from P ranks of P steps each. Shares are added in float64.

    Operands are NumPy arrays of the whole sequence. place(array) copies one to the device.
    empty(shape, kind) makes a poisoned array there; kind is "operand" (the operands' dtype), "f64"
    or "wide" (the accumulator's type).
    """
    lib = library()
    scale = x.q.shape[-1] ** -0.5
    rows, keys = x.q.shape[2] // world_size, x.k.shape[2] // world_size
    maps = [[lib.baracuda_layout_map(layout, rank, world_size, length)
             for rank in range(world_size)] for length in (rows, keys)]  # fmt: skip
    places = [[m.positions(length) for m in of] for of, length in zip(maps, (rows, keys), strict=True)]
    totals = [np.zeros(a.shape) for a in (x.q, x.k, x.v)]
    for rank in range(world_size):
        at = places[0][rank]
        mine = Problem(*(None if a is None else place(np.ascontiguousarray(a[:, :, at]))
                         for a in (x.q, x.q, x.q, x.dy, x.dlse)))  # fmt: skip
        dq = empty(mine.q.shape, "operand")
        call = Steps(mine, *(place(np.ascontiguousarray(a[:, :, at])) for a in (y, lse)),
                     kernel=kernel, kv_heads=x.k.shape[1], dq=dq, scale=scale, causal=causal,
                     q_map=maps[0][rank], stream=stream, sm_margin=sm_margin)  # fmt: skip
        scratch = empty((call.scratch_bytes() // 8 + 1,), "f64")
        call.params.step.state = pointer(scratch)
        call.prepare()
        for step in range(world_size):
            origin = (rank - step) % world_size
            seen = places[1][origin]
            k, v = (place(np.ascontiguousarray(a[:, :, seen])) for a in (x.k, x.v))
            dk, dv = (empty(k.shape, "wide") for _ in range(2))
            call.bind_keys(k, v, dk, dv, maps[1][origin])
            call.step(first=step == 0, last=step == world_size - 1)
            for total, part in zip(totals[1:], (dk, dv), strict=True):
                total[:, :, seen] += to_numpy(part)
        totals[0][:, :, at] = to_numpy(dq)
    return totals


def to_numpy(x: Any) -> np.ndarray:
    return x.astype(np.float64) if isinstance(x, np.ndarray) else x.double().cpu().numpy()
