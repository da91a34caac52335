"""Steps that would fill the device let their exchange begin first, and no other steps wait.

The wait is a kernel ahead of the step's; captured, a step that waits is two nodes. The rule itself is
under test in unit/test_ring_native.py, on simulated streams; here are the grids it is told.
"""

import ctypes as ct

import pytest
from helpers import cuda_ring, xla_frames
from helpers.rings import preference

from baracuda_kernels.testing import torch_qkv

pytestmark = pytest.mark.gpu

MARGIN = 8
# Family, element, head_dim, rows of a tile, blocks on a multiprocessor.
FAMILIES = {"sm80": ("bf16", 128, 128, 2), "simt": ("f32", 64, 64, 3)}


def pauses(torch, family, dtype, head_dim, rows, blocks, *, margin=MARGIN, in_clusters=False):
    """How often a run of two steps, the first with an exchange, is held up; heads have one tile."""
    q, k, v = torch_qkv("normal", dtype, 0, heads=blocks, query_len=rows, head_dim=head_dim)
    rank = cuda_ring.RankTensors(torch, q, k, v, family=family)
    rank.stage()
    ring = cuda_ring.IdleRing(2, max_ctas=margin, in_clusters=in_clusters)

    def run(stream):
        call = rank.call(ring.endpoint, stream, ring.hops)
        cuda_ring.check(ring.lib.baracuda_ring_run(ct.byref(call), 1))

    nodes = captured_nodes(torch, run)
    ring.close()
    return nodes - 2


def captured_nodes(torch, enqueue):
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        enqueue(torch.cuda.current_stream().cuda_stream)
    count = ct.c_size_t()
    driver = ct.CDLL("libcuda.so.1")
    driver.cuGraphGetNodes.argtypes = [ct.c_void_p, ct.c_void_p, ct.POINTER(ct.c_size_t)]
    assert driver.cuGraphGetNodes(graph.raw_cuda_graph(), None, ct.byref(count)) == 0
    return count.value


@pytest.mark.parametrize("family", FAMILIES)
def test_one_block_a_tile(torch, family):
    dtype, head_dim, rows, per_sm = FAMILIES[family]
    preference(family, dtype)  # skips on a card without the family
    every = torch.cuda.get_device_properties(0).multi_processor_count
    left = every - MARGIN

    def held_up(blocks, margin=MARGIN):
        return pauses(torch, family, dtype, head_dim, rows, blocks, margin=margin)

    assert held_up(left) == 0  # some multiprocessors stay free
    assert held_up(left + 1) == 1
    assert held_up(per_sm * left) == 1
    assert held_up(per_sm * left + 1) == 0  # leaving SMs free would cost another wave
    assert held_up(per_sm * every + 1) == 1  # another wave is needed anyway
    assert held_up(per_sm * left, margin=0) == 0
    assert held_up(per_sm * left, margin=every) == 0


def test_resident_blocks_wait_for_clusters_alone(torch):
    preference("sm90a", "bf16")
    left = torch.cuda.get_device_properties(0).multi_processor_count - MARGIN

    def held_up(blocks, in_clusters, margin=MARGIN):
        return pauses(torch, "sm90a", "bf16", 128, 128, blocks, margin=margin,
                      in_clusters=in_clusters)  # fmt: skip

    assert held_up(left, True) == 1
    assert held_up(3 * left, True) == 1
    assert held_up(left - 1, True) == 0
    assert held_up(3 * left, False) == 0
    assert held_up(3 * left, True, margin=0) == 0


def test_steps_of_jax_do_as_its_communicators_come_in_clusters(torch):
    preference("sm90a", "bf16")
    left = torch.cuda.get_device_properties(0).multi_processor_count - MARGIN
    q, k, v = torch_qkv("normal", "bf16", 0, heads=left, query_len=128, head_dim=128)
    y, lse = torch.empty_like(q), torch.empty(1, left, 128, 1, device="cuda")
    step = xla_frames.handler("baracuda_xla_attention_cuda")

    def waits(margin):
        options = {
            "first": 1, "last": 1, "causal": 0, "kernel": cuda_ring.FAMILIES["sm90a"],
            "sequence_dim": 2, "sm_margin": margin, "interruptible": 1, "scale": 0.1,
        }  # fmt: skip

        def enqueue(stream):
            call = xla_frames.Call([q, k, v], [y, lse], options, stream=stream)
            assert call(step) is None, call.errors

        enqueue(torch.cuda.current_stream().cuda_stream)  # loads
        return captured_nodes(torch, enqueue) == 2

    assert waits(MARGIN)
    assert not waits(0)


def test_steps_of_jaxs_gradients_do_so_too(torch):
    """One node more than the preparation and the step."""
    preference("sm90a", "bf16")
    heads = torch.cuda.get_device_properties(0).multi_processor_count - MARGIN
    q, k, v = torch_qkv("normal", "bf16", 0, heads=heads, query_len=128, head_dim=128)
    lse = torch.zeros(1, heads, 128, 1, device="cuda")
    scratch = torch.empty(1, 1, 1, heads * 128 * 132, device="cuda")
    dk, dv = (torch.empty_like(k, dtype=torch.float32) for _ in range(2))
    step = xla_frames.handler("baracuda_xla_attention_backward_cuda")

    def nodes(margin):
        options = {
            "first": 1, "last": 0, "causal": 0, "dlse": 0, "kernel": cuda_ring.FAMILIES["sm90a"],
            "sequence_dim": 2, "sm_margin": margin, "scale": 0.1,
        }  # fmt: skip

        def enqueue(stream):
            operands = [q, k, v, q, q, lse]
            call = xla_frames.Call(operands, [scratch, dk, dv], options, stream=stream)
            assert call(step) is None, call.errors

        enqueue(torch.cuda.current_stream().cuda_stream)  # loads
        return captured_nodes(torch, enqueue)

    assert nodes(MARGIN) == nodes(0) + 1
