"""Random problems of attention over a ring, through the C ABI, with their answer in float64."""

from __future__ import annotations

import ctypes as ct
from typing import Any

import numpy as np

from . import ring_abi as abi
from .host_abi import CAUSAL, make_params


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
        self.parts: dict[int, abi.AttentionProblem] = {}  # of each rank's call, to change
        self.kv: dict[int, abi.Payload] = {}
        self.reset()

    def reset(self) -> None:
        """Poisons outputs and scratch, stages K and V."""
        self.y[:] = self.lse[:] = 77.0
        self.state[:] = self.receive[:] = np.nan
        if self.staged:
            self.receive[:, 0, 0] = self.k
            self.receive[:, 0, 1] = self.v

    def call(
        self, rank: int, endpoint: abi.Endpoint, stream: Any = None, hops: Any = None,
        program: Any = None,
    ) -> abi.Call:  # fmt: skip
        buffers = self.receive[rank]
        k, v = (buffers[0, 0], buffers[0, 1]) if self.staged else (self.k[rank], self.v[rank])
        step = make_params(
            self.q[rank], k, v, self.y[rank], self.lse[rank], self.state[rank],
            element="f64", lse_element="f64", flags=CAUSAL if self.causal else 0,
        )  # fmt: skip
        self.hops[rank] = abi.plain_schedule(rank, self.world_size) if hops is None else hops
        self.parts[rank] = abi.AttentionProblem(
            struct_size=ct.sizeof(abi.AttentionProblem), kernel=0, layout=self.layout, step=step
        )
        received = [buffer.ctypes.data for buffer in buffers]
        self.kv[rank] = abi.kv_payload(k.ctypes.data, v.ctypes.data, received, k.nbytes)
        return abi.attention_call(
            endpoint, stream, self.hops[rank], self.parts[rank], self.kv[rank], program
        )

    def calls(self, endpoints: list[abi.Endpoint], streams: Any = None, program: Any = None) -> Any:
        streams = [None] * self.world_size if streams is None else streams
        ranks = range(self.world_size)
        made = [self.call(r, endpoints[r], streams[r], program=program) for r in ranks]
        return (abi.Call * self.world_size)(*made)

    def positions(self, rank: int, length: int) -> np.ndarray:
        """Of a shard's rows, from the definition of the layouts."""
        p, half, i = self.world_size, (length + 1) // 2, np.arange(length)
        if self.layout == abi.CONTIGUOUS:
            return rank * length + i
        if self.layout == abi.STRIPED:
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
