"""Non-finite operands on the GPU, over rings of several sizes."""

from itertools import product

import pytest
from helpers.nonfinite import LENGTH, SPOILT, check, problem
from helpers.rings import case, local_ring

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("sm90a", "f16"),
        ("sm90a", "bf16"),
        ("sm80", "f16"),
        ("sm80", "bf16"),
        ("simt", "f32"),
        ("simt", "f64"),
    ],
)
@pytest.mark.parametrize("kind", SPOILT)
def test_nan_and_inf_reach_the_rows_that_see_them(torch, kind, family, dtype, ranks):
    types = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32,
             "f64": torch.float64}
    # Zigzag halves of 512 rows have 64 rows or more, so half of the rows see no key in some steps.
    for length, layout in product((LENGTH, 512), ("contiguous", "zigzag", "striped")):
        x, spoilt = problem(kind, length=length)
        q, k, v = (torch.from_numpy(a).to("cuda", types[dtype]) for a in x)
        with case(length=length, layout=layout):
            y, _ = local_ring(torch, family, dtype, q, k, v, ranks, layout=layout, is_causal=True)
            check(kind, y.double().cpu().numpy(), spoilt)
