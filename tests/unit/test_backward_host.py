"""The host family's gradients against float64."""

import itertools

import numpy as np
import pytest
from helpers.gradients import draw, errors, host_gradients

from baracuda_kernels.reference import attention_backward


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [("f64", 1e-13), ("f32", 2e-6)])
def test_against_float64(dtype, bound, is_causal):
    for seed, (query_len, key_len, head_dim) in enumerate([(1, 1, 1), (65, 129, 40), (200, 70, 64)]):
        x = draw(dtype, seed, batch=2, heads=4, kv_heads=2, query_len=query_len, key_len=key_len,
                 head_dim=head_dim, dlse=True)
        exact = attention_backward(*x[:4], dlse=x.dlse, is_causal=is_causal)
        got = errors(host_gradients(x, is_causal=is_causal), exact)
        assert max(got.values()) <= bound, (got, query_len, key_len, head_dim)
