"""Non-finite operands on the host, over rings of several sizes."""

import numpy as np
import pytest
from helpers.nonfinite import SPOILT, check, problem

import baracuda_kernels as bk


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", SPOILT)
def test_nan_and_inf_reach_the_rows_that_see_them(kind, dtype, ranks):
    for _ in range(4):  # the result of an Inf depends on the sign of a random factor
        x, spoilt = problem(kind, dtype)
        for layout in ("contiguous", "zigzag", "striped"):
            y, _ = bk.run_local_ring(*x, ranks, is_causal=True, sequence_layout=layout)
            check(kind, y, spoilt)
