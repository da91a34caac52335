"""Local rings over whole arrays on device 1, with device 0 current."""

import numpy as np
import pytest

import baracuda_kernels as bk
from baracuda_kernels.testing import assert_close, attention, torch_qkv

pytestmark = [pytest.mark.gpu, pytest.mark.multi_gpu(2)]

CALLERS, OURS = 0, 1
RANKS = 2
LAYOUTS = ["contiguous", "zigzag", "striped"]


@pytest.fixture
def arrays(torch):
    """q, k and v in host memory, as float16, of more than one head: shards of them are no dense
    memory."""
    x = torch_qkv("normal", "f16", 0, heads=4, kv_heads=2, query_len=128, key_len=128, head_dim=64)
    return [a.cpu().numpy() for a in x]


@pytest.fixture
def callers_device(torch):
    """Device 0 is current, before and after."""
    torch.cuda.set_device(CALLERS)
    yield
    assert torch.cuda.current_device() == CALLERS


def check(torch, y, lse, arrays):
    exact = attention(*map(torch.from_numpy, arrays), is_causal=True)
    assert_close("sm80", "f16", torch.from_numpy(y), exact[0], torch.from_numpy(lse), exact[1])


@pytest.mark.framework("cupy")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cupy(torch, arrays, callers_device, layout):
    import cupy

    with cupy.cuda.Device(OURS):
        q, k, v = map(cupy.asarray, arrays)
    with cupy.cuda.Device(CALLERS):
        for shard in bk.shard(q, RANKS, sequence_layout=layout):
            assert shard.device.id == OURS
        y, lse = bk.run_local_ring(q, k, v, RANKS, is_causal=True, sequence_layout=layout,
                                   device=f"cuda:{OURS}")
        assert cupy.cuda.Device().id == CALLERS
    assert y.device.id == lse.device.id == OURS
    check(torch, cupy.asnumpy(y), cupy.asnumpy(lse), arrays)


@pytest.mark.framework("cuda.core")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numpy(torch, arrays, callers_device, layout):
    y, lse = bk.run_local_ring(*arrays, RANKS, is_causal=True, sequence_layout=layout,
                               device=f"cuda:{OURS}")
    assert torch.cuda.current_device() == CALLERS
    assert isinstance(y, np.ndarray)
    check(torch, y, lse, arrays)
