"""Process groups for the tests of the PyTorch and transformers adapters; devices for JAX's."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from helpers.rank_pool import RankPool

WORKER = Path(__file__).parent / "torch_worker.py"


@pytest.fixture(scope="session")
def torch():
    """The torch module; unlike for gpu tests, it need see no device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch as module
        import torch.distributed

        import baracuda_kernels.interop.torch  # noqa: F401
    return module


@pytest.fixture(scope="session")
def gloo_ranks(torch):
    """Four processes, one gloo group."""
    ranks = RankPool(4, WORKER, backend="gloo")
    yield ranks
    ranks.close(cleanly=True)


@pytest.fixture
def one_rank(torch):
    """This process as a gloo group of one."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    from baracuda_kernels.interop.torch import clear_cache

    clear_cache()
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def jax():
    """The jax module with eight virtual CPU devices."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    return jax


@pytest.fixture(scope="session")
def hand(jax):
    """Helpers for gradients by JAX, which is imported with its devices."""
    from helpers import jax_gradients

    return jax_gradients
