"""Steps that would fill the device let the exchange beside them begin first, and no others wait.

The wait is a kernel ahead of the step's; captured, a step that waits is two nodes.
"""

import ctypes as ct

import pytest
from helpers import cuda_ring, xla_frames
from helpers import ring_abi as abi
from helpers.inputs import torch_qkv
from helpers.rings import preference

pytestmark = pytest.mark.gpu

MARGIN = 8
FIRST, GIVES_WAY = 1, 16
# Family, element, head_dim, rows of a tile, blocks on a multiprocessor.
FAMILIES = {"sm80": ("bf16", 128, 128, 2), "simt": ("f32", 64, 64, 3)}


def nodes_of_a_step(torch, family, dtype, head_dim, rows, blocks, *, margin, flags=FIRST):
    """Of one step whose heads have one tile each."""
    q, k, v = torch_qkv("normal", dtype, 0, heads=blocks, query_len=rows, head_dim=head_dim)
    rank = cuda_ring.RankTensors(torch, q, k, v, family=family)
    rank.stage()
    params = rank.step()
    params.flags, params.sm_margin = flags, margin
    number, lib = cuda_ring.FAMILIES[family], abi.library()
    cuda_ring.check(lib.baracuda_attention_load(number, ct.byref(params)))
    lib.baracuda_attention_step.argtypes = [ct.c_int32, ct.c_void_p, ct.c_void_p]

    def step(stream):
        cuda_ring.check(lib.baracuda_attention_step(number, ct.addressof(params), stream))

    return captured_nodes(torch, step)


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
    preference(family, dtype)  # skips where the card lacks the family
    all_sms = torch.cuda.get_device_properties(0).multi_processor_count
    left = all_sms - MARGIN

    def waits(blocks, margin=MARGIN):
        return nodes_of_a_step(torch, family, dtype, head_dim, rows, blocks, margin=margin) == 2

    assert not waits(left)  # whole multiprocessors stay free
    assert waits(left + 1)
    assert waits(per_sm * left)
    assert not waits(per_sm * left + 1)  # would take another wave
    assert not waits(per_sm * all_sms)
    assert waits(per_sm * all_sms + 1)  # takes it anyway
    assert not waits(per_sm * left, margin=0)
    assert not waits(per_sm * left, margin=all_sms)


def test_resident_blocks_wait_for_clusters_alone(torch):
    preference("sm90a", "bf16")
    left = torch.cuda.get_device_properties(0).multi_processor_count - MARGIN

    def waits(blocks, flags, margin=MARGIN):
        return nodes_of_a_step(torch, "sm90a", "bf16", 128, 128, blocks, margin=margin,
                               flags=flags) == 2  # fmt: skip

    assert waits(left, FIRST | GIVES_WAY)
    assert waits(3 * left, FIRST | GIVES_WAY)
    assert not waits(left - 1, FIRST | GIVES_WAY)
    assert not waits(3 * left, FIRST)
    assert not waits(3 * left, FIRST | GIVES_WAY, margin=0)


def test_steps_of_jax_do_as_its_communicators_come_in_clusters(torch):
    preference("sm90a", "bf16")
    left = torch.cuda.get_device_properties(0).multi_processor_count - MARGIN
    q, k, v = torch_qkv("normal", "bf16", 0, heads=left, query_len=128, head_dim=128)
    y, lse = torch.empty_like(q), torch.empty(1, left, 128, 1, device="cuda")
    step = xla_frames.handler("baracuda_xla_attention_cuda")

    def waits(margin):
        options = {
            "first": 1, "last": 1, "causal": 0, "kernel": cuda_ring.FAMILIES["sm90a"],
            "sequence_dim": 2, "sm_margin": margin, "scale": 0.1,
        }  # fmt: skip

        def enqueue(stream):
            call = xla_frames.Call([q, k, v], [y, lse], options, stream=stream)
            assert call(step) is None, call.errors

        enqueue(torch.cuda.current_stream().cuda_stream)  # loads
        return captured_nodes(torch, enqueue) == 2

    assert waits(MARGIN)
    assert not waits(0)
