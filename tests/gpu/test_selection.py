"""select picks on the GPU the kernel that explain names without one."""

import itertools

import pytest

import baracuda_kernels as bk
from baracuda_kernels import registry

pytestmark = pytest.mark.gpu

PROBLEMS = [
    {"head_dim": head_dim, "element": element, "scale": scale}
    for head_dim, element, scale in itertools.product(
        (0, 1, 64, 80, 96, 128, 192, 256, 257),
        (
            bk.ElementKind.F16,
            bk.ElementKind.BF16,
            bk.ElementKind.F32,
            bk.ElementKind.F32_STRICT,
            bk.ElementKind.F64,
            bk.ElementKind.FP8_E4M3,
        ),
        (None, 0.0, -1.0),
    )
]


@pytest.mark.parametrize("op", ["ring_attention", "flash_sdpa"])
def test_select_picks_what_explain_named(torch, op):
    plan_type, descriptor_type = {
        "ring_attention": (bk.RingAttentionPlan, bk.RingAttentionDescriptor),
        "flash_sdpa": (bk.FlashSdpaPlan, bk.FlashSdpaDescriptor),
    }[op]
    stream = bk.Stream(torch.cuda.current_stream())
    major, minor = torch.cuda.get_device_capability()
    arch = {(9, 0): bk.ArchSku.SM90A, (8, 9): bk.ArchSku.SM89}.get((major, minor), bk.ArchSku.SM80)
    for problem in PROBLEMS:
        desc = descriptor_type(1, 2, 64, 64, **problem)
        named = registry.explain(desc, arch=arch).selected
        assert registry.explain(desc).selected == named
        if named is None:
            with pytest.raises(bk.errors.UnsupportedError):
                plan_type.select(stream, desc)
        else:
            assert plan_type.select(stream, desc).sku == named


def test_a_preference_that_nothing_meets_is_refused(torch):
    stream = bk.Stream(torch.cuda.current_stream())
    desc = bk.RingAttentionDescriptor(1, 2, 64, 64, 64, element=bk.ElementKind.BF16)
    for pref in (
        bk.PlanPreference(math_precision=bk.MathPrecision.FP8_E4M3),
        bk.PlanPreference(prefer_backend=bk.BackendKind.CUTLASS),
        bk.PlanPreference(max_workspace_bytes=0),
    ):
        with pytest.raises(bk.errors.UnsupportedError):
            bk.RingAttentionPlan.select(stream, desc, pref)
