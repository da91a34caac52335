"""Rings of the test op of sum_op.cpp: chunks beside the steps, sums behind them."""

from __future__ import annotations

import ctypes as ct
from functools import cache
from typing import Any

import numpy as np

from . import ring_abi as abi


class _Problem(ct.Structure):
    _fields_ = [
        ("count", ct.c_int64),
        ("y", ct.c_void_p),
        ("live", ct.c_void_p),
        ("enqueue", ct.c_void_p),
        ("beside_alone", ct.c_int64),
    ]


@cache
def _op() -> ct.CDLL:
    op = ct.CDLL(abi.build_helper("sum_op.cpp"))
    op.sum_program.restype = ct.POINTER(abi.Program)
    return op


@cache
def pushes() -> ct.CDLL:
    """The exchange by push (push_exchange.cpp)."""
    lib = ct.CDLL(abi.build_helper("push_exchange.cpp"))
    lib.push_exchange.restype = lib.push_world.restype = ct.c_void_p
    lib.push_world.argtypes = [ct.c_void_p, ct.c_int]
    lib.push_waits.argtypes = lib.push_world_destroy.argtypes = [ct.c_void_p]
    return lib


class SumRing:
    """All ranks' memory of one ring, and their calls.

    Parameters
    ----------
    parts : int
        Launches of a step, each with a sum of its own.
    launch_adds : bool
        Whether launches add to what was received, or leave that to the loop.
    live : array of bool [rank, origin], optional
        Which steps compute anything; all by default.
    staged : bool
        Whether a and b lie in the first of their receive buffers.
    beside_alone : bool
        Whether nothing travels behind the steps.
    """

    def __init__(
        self, world_size: int, *, parts: int = 1, launch_adds: bool = False, live: Any = None,
        staged: bool = False, count: int = 5, seed: int = 0, beside_alone: bool = False,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        self.world_size, self.parts, self.launch_adds = world_size, parts, launch_adds
        shape = (world_size, world_size)
        self.live = np.ones(shape, np.uint8) if live is None else np.asarray(live, np.uint8)
        self.a, self.b = rng.standard_normal((2, world_size, count))
        self.y = np.empty((world_size, count))
        self.beside = np.empty((world_size, 2, 2, count))  # rank, buffer, piece
        self.behind = np.empty((world_size, parts, 3, 2, count))  # rank, part, buffer, piece
        self.home = np.empty((world_size, parts, 2, count))
        self.staged, self.beside_alone = staged, beside_alone
        self.kept: dict[int, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Poisons outputs and buffers."""
        for x in (self.beside, self.behind, self.home):
            x[:] = np.nan
        self.y[:] = 0
        if self.staged:
            self.beside[:, 0] = np.stack([self.a, self.b], axis=1)

    def payloads(self, rank: int) -> Any:
        beside = self.beside[rank]
        a, b = beside[0] if self.staged else (self.a[rank], self.b[rank])
        made = [_payload(abi.BESIDE, 0, [a, b], beside)]
        for part in range(0 if self.beside_alone else self.parts):
            behind = self.behind[rank, part]
            made.append(_payload(abi.BEHIND, part, list(self.home[rank, part]), behind))
        return (abi.Payload * len(made))(*made)

    def call(self, rank: int, endpoint: Any, stream: Any = None, enqueue: Any = None) -> abi.Call:
        problem = _Problem(
            self.a.shape[1], self.y[rank].ctypes.data, self.live.ctypes.data, enqueue,
            int(self.beside_alone),
        )  # fmt: skip
        payloads, hops = self.payloads(rank), abi.plain_schedule(rank, self.world_size)
        self.kept[rank] = problem, payloads, hops
        return abi.Call(
            struct_size=ct.sizeof(abi.Call),
            endpoint=ct.pointer(endpoint),
            stream=stream,
            hops=hops,
            program=_op().sum_program(self.parts, int(self.launch_adds)),
            problem=ct.addressof(problem),
            payloads=payloads,
            payload_count=len(payloads),
        )

    def calls(self, endpoints: list[Any], streams: Any = None, enqueue: Any = None) -> Any:
        streams = [None] * self.world_size if streams is None else streams
        ranks = range(self.world_size)
        made = [self.call(r, endpoints[r], streams[r], enqueue) for r in ranks]
        return (abi.Call * self.world_size)(*made)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """y and the returned sums, added in the schedule's order: the bits must be equal."""
        p = self.world_size
        y, home = np.zeros_like(self.y), np.zeros_like(self.home)
        for rank in range(p):
            for origin in ((rank - step) % p for step in range(p)):
                if self.live[rank, origin]:
                    y[rank] += self.a[origin]
            if self.live[rank, (rank + 1) % p]:  # the last step
                y[rank] = 2 * y[rank] + 1
        for origin in range(p):
            for part in range(self.parts):
                total = None
                for rank in ((origin + step) % p for step in range(1, p)):
                    share = self.share(rank, origin, part)
                    total = share if total is None else total + share
                own = self.share(origin, origin, part)
                home[origin, part] = own if total is None else own + total
        return y, home

    def share(self, rank: int, origin: int, part: int) -> np.ndarray:
        if not self.live[rank, origin]:
            return np.zeros((2, self.a.shape[1]))
        share = (1 + 0.37 * rank + 0.11 * part) * self.a[origin] + part * self.b[origin]
        return np.stack([share, -2 * share])

    def is_right(self) -> bool:
        y, home = self.expected()
        return np.array_equal(self.y, y) and (self.beside_alone or np.array_equal(self.home, home))


def _payload(timing: int, part: int, own: list[np.ndarray], buffers: np.ndarray) -> abi.Payload:
    payload = abi.Payload(timing=timing, part=part, pieces=len(own))
    for i, piece in enumerate(own):
        payload.own[i], payload.piece_bytes[i] = piece.ctypes.data, piece.nbytes
    for i, buffer in enumerate(buffers):
        payload.buffers[i] = buffer.ctypes.data
    return payload
