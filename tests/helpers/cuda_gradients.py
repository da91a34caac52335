"""Backward calls on a GPU with poisoned outputs, compared with float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import baracuda_kernels as bk
from baracuda_kernels.testing import assert_gradients, attention_backward, max_score

from .gradients import Problem, draw
from .rings import preference


def on_gpu(torch: Any, x: Any) -> Problem:
    """A NumPy problem as tensors; bfloat16 of ml_dtypes becomes torch's."""
    def tensor(a: Any) -> Any:
        if a is None:
            return None
        if a.dtype.name == "bfloat16":
            return torch.from_numpy(a.astype(np.float32)).cuda().to(torch.bfloat16)
        return torch.from_numpy(np.array(a)).cuda()
    return Problem(*map(tensor, x))


def drawn(torch: Any, dtype: str, seed: int, **shape: Any) -> Problem:
    """`helpers.gradients.draw` on the GPU."""
    return on_gpu(torch, draw(dtype, seed, **shape))


class Call:
    """A backward call with its own poisoned outputs, and its forward."""

    def __init__(self, torch: Any, family: str, dtype: str, x: Problem, *, wide: bool = False,
                 **options: Any) -> None:  # fmt: skip
        self.torch = torch
        (b, h, q, d), (_, hkv, k, _) = x.q.shape, x.k.shape
        desc = bk.FlashSdpaDescriptor(b, h, q, k, d, element=dtype.upper(), num_kv_heads=hkv,
                                      **options)
        stream = bk.Stream(torch.cuda.current_stream())
        plan = bk.FlashSdpaPlan.select(desc, stream, preference(family, dtype))
        wider = torch.float64 if dtype == "f64" else torch.float32
        self.y = torch.full_like(x.q, math.nan)
        self.lse = torch.full(x.q.shape[:3], math.nan, dtype=wider, device="cuda")
        plan.run(stream, bk.FlashSdpaArgs(q=x.q, k=x.k, v=x.v, y=self.y, lse=self.lse))
        self.plan = bk.FlashSdpaBackwardPlan.select(desc, stream, preference(family, dtype))
        assert self.plan.family == family
        of_keys = wider if wide else x.k.dtype
        self.gradients = [torch.empty_like(x.q), *(torch.empty_like(x.k, dtype=of_keys)
                                                   for _ in range(2))]
        self.scratch = torch.empty(self.plan.scratch_bytes, dtype=torch.uint8, device="cuda")
        self.poison()
        self.args = bk.FlashSdpaBackwardArgs(
            **x._asdict(), y=self.y, lse=self.lse, scratch=self.scratch,
            **dict(zip(("dq", "dk", "dv"), self.gradients, strict=True)))

    def poison(self) -> None:
        for x in self.gradients:
            x.fill_(math.nan)
        self.scratch.fill_(255)  # NaNs

    def run(self) -> list[Any]:
        self.plan.run(self.torch.cuda.current_stream(), self.args)
        return self.gradients


def gradients(torch: Any, family: str, dtype: str, x: Problem, **options: Any) -> list[Any]:
    """dq, dk, dv."""
    return Call(torch, family, dtype, x, **options).run()


def summands(x: Problem) -> float:
    """The size of a gradient's summands."""
    norms = [float(a.double().norm(dim=-1).max()) if a.numel() else 0.0 for a in (x.k, x.v, x.dy)]
    return max(math.prod(norms), norms[0]) * (1 if x.dlse is None else 1 + float(x.dlse.abs().max()))


def check(torch: Any, family: str, dtype: str, x: Problem, *, peaked: bool = False,
          exact: Any = None, **options: Any) -> list[Any]:  # fmt: skip
    """Check the gradients of a problem against float64, and return them."""
    if exact is None:
        exact = attention_backward(*x[:4], dlse=x.dlse,
                                   **{n: v for n, v in options.items() if n != "wide"})
    got = gradients(torch, family, dtype, x, **options)
    score = max_score(x.q.double().cpu().numpy(), x.k.double().cpu().numpy(), options.get("scale"))
    assert_gradients(family, dtype, got, exact, score=score if score > 40 else 0.0,
                     summands=summands(x), peaked=peaked)
    return got
