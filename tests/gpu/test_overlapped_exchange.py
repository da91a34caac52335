"""Overlap changes no bit: exchanges during the steps or between them, eager or in a CUDA graph.

Without overlap a rank's exchanges go to its caller's own stream, each in its place before the step
that it would run beside, and no SMs are left to them. So long steps of sm90a then run in clusters,
which they do not with SMs left.
"""

import pytest
from helpers import cuda_ring
from helpers import ring_abi as abi
from helpers.rings import preference, same_bits, shards_of

from baracuda_kernels.testing import torch_qkv

pytestmark = pytest.mark.gpu

RANKS, HEADS, KV_HEADS = 4, 4, 2
# Rows of a rank. Long steps have other tiles than short ones. Half of 4480 rows has a ragged last tile.
ROWS = (384, 4096, 4480)
KERNELS = [("sm90a", "bf16", 128), ("sm90a", "bf16", 256), ("sm90a", "f16", 64),
           ("sm80", "bf16", 128), ("simt", "f32", 64)]  # fmt: skip


class _Ring:
    """Ranks of one ring and their endpoints; `run` enqueues all of it on the current stream."""

    max_ctas = 8

    def run(self, torch, overlap):
        stream = torch.cuda.current_stream().cuda_stream
        endpoints = self.endpoints
        if not overlap:
            endpoints = abi.without_overlap(endpoints, [stream] * len(endpoints))
        calls = []
        for rank, endpoint, hops in zip(self.ranks, endpoints, self.hops, strict=True):
            endpoint.max_ctas = self.max_ctas if overlap else 0
            rank.stage()
            calls.append(rank.call(endpoint, stream, hops, layout=abi.ZIGZAG, causal=True))
        array = (abi.Call * len(calls))(*calls)
        cuda_ring.check(abi.library().baracuda_ring_run(array, len(calls)))

    def poison(self):
        for rank in self.ranks:
            for x in (rank.y, rank.lse, rank.state, rank.buffers):
                x.fill_(float("nan"))

    def outputs(self):
        return [x.clone() for rank in self.ranks for x in (rank.y, rank.lse)]


class _LocalRing(_Ring):
    def __init__(self, torch, family, dtype, head_dim, rows):
        shape = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": head_dim}
        q, k, v = torch_qkv("normal", dtype, 3, query_len=rows * RANKS, **shape)
        shards = shards_of(q, k, v, RANKS, "zigzag")
        self.ranks = [cuda_ring.RankTensors(torch, *shard, family=family) for shard in shards]
        self.world = abi.LocalWorld(RANKS, cuda_ring.cuda_ops())
        self.endpoints = self.world.endpoints
        self.hops = [abi.plain_schedule(rank, RANKS) for rank in range(RANKS)]

    def close(self):
        self.world.close()


class _NcclRing(_Ring):
    """A rank that sends to itself."""

    def __init__(self, torch, family, dtype, head_dim, rows):
        shape = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": head_dim}
        q, k, v = torch_qkv("normal", dtype, 3, query_len=rows, **shape)
        self.ranks = [cuda_ring.RankTensors(torch, q, k, v, family=family)]
        self.own = cuda_ring.SelfRing(RANKS, max_ctas=self.max_ctas)
        self.endpoints, self.hops = [self.own.endpoint], [self.own.hops]

    def close(self):
        self.own.close()


class _ClusteredRing(_NcclRing):
    """As with a borrowed communicator: steps that fill the device begin a little later."""

    def __init__(self, *problem):
        super().__init__(*problem)
        self.own.endpoint.in_clusters = 1


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    "kind", [_LocalRing, _NcclRing, _ClusteredRing], ids=["local", "nccl", "clustered"]
)
@pytest.mark.parametrize(("family", "dtype", "head_dim"), KERNELS)
def test_overlap_and_capture_change_no_bit(torch, family, dtype, head_dim, kind, rows):
    preference(family, dtype)  # skips on a card without the family
    ring = kind(torch, family, dtype, head_dim, rows)
    found = {}
    # Not the stream that made the operands and poisoned the outputs.
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for overlap in (True, False):
        with torch.cuda.stream(stream):
            ring.poison()
            ring.run(torch, overlap)
            torch.cuda.synchronize()
            found[overlap, "eager"] = ring.outputs()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ring.run(torch, overlap)
        with torch.cuda.stream(stream):
            ring.poison()
            graph.replay()
            torch.cuda.synchronize()
            found[overlap, "captured"] = ring.outputs()
        del graph  # NCCL ends a communicator only when no graph has its work
    expected = found[True, "eager"]
    assert all(x.isfinite().all() for x in expected)
    for case, outputs in found.items():
        for x, y in zip(expected, outputs, strict=True):
            assert same_bits(torch, x, y), f"{case} differs from the eager run with overlap"
    ring.close()
