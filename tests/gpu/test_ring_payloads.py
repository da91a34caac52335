"""Payloads that travel BEHIND, on a GPU: the test op over local rings, eager and in a graph."""

import pytest
from helpers import cuda_ring
from helpers import ring_abi as abi
from helpers.cuda_sum import CudaSumRank
from helpers.sum_ring import SumRing

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("one_stream", [True, False])
@pytest.mark.parametrize(("parts", "launch_adds"), [(1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 9])
def test_sums_come_home_to_the_last_bit(torch, world_size, parts, launch_adds, one_stream):
    ring = SumRing(world_size, parts=parts, launch_adds=launch_adds, count=4096)
    ranks = [CudaSumRank(torch, ring, rank) for rank in range(world_size)]
    world = abi.LocalWorld(world_size, cuda_ring.cuda_ops())
    streams = [torch.cuda.Stream() for _ in range(1 if one_stream else world_size)]
    streams *= world_size if one_stream else 1

    def run():
        calls = [
            rank.call(end, stream.cuda_stream)
            for rank, end, stream in zip(ranks, world.endpoints, streams, strict=True)
        ]
        array = (abi.Call * world_size)(*calls)
        cuda_ring.check(abi.library().baracuda_ring_run(array, world_size))

    for _ in range(2):
        for rank in ranks:
            rank.poison()
        torch.cuda.synchronize()
        run()
        assert all(rank.is_right() for rank in ranks)
    if one_stream:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=streams[0]):
            run()
        for rank in ranks:
            rank.poison()
        torch.cuda.synchronize()
        graph.replay()
        assert all(rank.is_right() for rank in ranks)
    world.close()
