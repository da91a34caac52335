"""What gets chosen and why, for any architecture, with no GPU in sight."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest

import baracuda_kernels as bk
from baracuda_kernels import registry

CUDA_BUILT = bk._build_info()["cuda_built"]
needs_cuda_build = pytest.mark.skipif(not CUDA_BUILT, reason="capability: CUDA kernels in the build")


def ring(**fields):
    good = {"batch_size": 1, "num_heads": 4, "query_len": 8, "key_len": 8, "head_dim": 64,
            "element": "BF16"}
    return bk.RingAttentionDescriptor(**{**good, **fields})


def test_ops_and_get():
    assert {"ring_attention", "flash_sdpa"} <= set(registry.ops())
    assert registry.get("ring_attention").plan_type is bk.RingAttentionPlan
    with pytest.raises(bk.UnsupportedError, match="ring_attention"):
        registry.get("ring")


def test_skus_are_complete_and_unique_per_op():
    skus = registry.skus(op="RING_ATTENTION")
    assert len(set(skus)) == len(skus) == 2 + 2 + 5 + 5
    assert {s.category for s in skus} == {bk.OpCategory.ATTENTION}
    # f64 state is kept in f64, every other in f32.
    for sku in skus:
        wide = sku.element is bk.ElementKind.F64
        expected = bk.ElementKind.F64 if wide else bk.ElementKind.F32
        assert sku.precision_guarantee.accumulator is expected


def test_sku_filters():
    strict = registry.skus(op="RING_ATTENTION", element="BF16", math_precision="F32")
    assert [s.arch.name for s in strict] == ["SM80", "HOST"]
    assert registry.skus(backend="HOST", element=bk.ElementKind.F64, op=3)[0].op.name == (
        "FLASH_ATTENTION"
    )
    assert registry.skus(deterministic=False) == []
    for bad in ({"colour": 1}, {"deterministic": "yes"}, {"arch": "SM70"}):
        with pytest.raises(bk.InvalidProblemError):
            registry.skus(**bad)


@needs_cuda_build
@pytest.mark.parametrize(
    ("fields", "arch", "family"),
    [
        ({}, "sm_90", "sm90a"), ({}, bk.ArchSku.SM90A, "sm90a"), ({"head_dim": 96}, 90, "sm80"),
        ({"head_dim": 256, "element": "F16"}, "sm90a", "sm90a"), ({}, "sm_100", "sm80"),
        ({}, 80, "sm80"), ({}, "8.9", "sm80"), ({}, (12, 0), "sm80"),
        ({}, bk.ArchSku.SM80, "sm80"), ({}, "host", "host"), ({}, bk.ArchSku.HOST, "host"),
        ({"head_dim": 80}, "sm_90", "simt"), ({"scale": 0.0}, "sm_90", "simt"),
        ({"scale": -0.1}, "sm_90", "simt"), ({"element": "F32"}, "sm_90", "simt"),
        ({"element": "F64"}, "sm_80", "simt"), ({"element": "F32_STRICT"}, "sm_90", "simt"),
        ({"head_dim": 257}, "sm_90", None), ({"head_dim": 257}, "host", "host"),
        ({}, "sm_75", None), ({"element": "S8"}, "sm_90", None), ({"head_dim": 0}, "host", None),
    ],
    ids=str,
)
def test_explain_for_any_architecture(fields, arch, family):
    explanation = registry.explain(ring(**fields), arch)
    assert explanation.family == family
    assert [c.family for c in explanation.candidates] == ["sm90a", "sm80", "simt", "host"]
    for candidate in explanation.candidates:
        assert candidate.accepted or candidate.reason
    if family is None:
        assert explanation.selected is None
        with pytest.raises(bk.UnsupportedError) as caught:
            explanation.require()
        for candidate in explanation.candidates:  # the error has every reason
            assert candidate.reason in str(caught.value)
    else:
        assert explanation.selected == explanation.chosen.sku
        assert explanation.to_dict()["family"] == family
    assert explanation.op in str(explanation)


@needs_cuda_build
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scale": 1e-40}, "beyond float32"), ({"scale": 1e39}, "beyond float32"),
        ({"query_len": 2**30 + 1}, "2\\*\\*30"), ({"key_len": 2**31}, "2\\*\\*30"),
        ({"batch_size": 2**20, "query_len": 2**18}, "32 bits"),
    ],
    ids=str,
)
def test_what_the_tensor_core_kernels_cannot_count_or_scale(fields, reason):
    """Known before a launch, so that select and explain name the kernel that will run."""
    import re

    explanation = registry.explain(ring(**fields), "sm_90")
    refused = {c.family: c.reason for c in explanation.candidates}
    assert re.search(reason, refused["sm90a"])
    assert explanation.family in ("sm80", "simt")


@needs_cuda_build
@pytest.mark.parametrize(
    ("preference", "family", "reason"),
    [
        (bk.PlanPreference(math_precision="F32"), "simt", "math_precision"),
        (bk.PlanPreference(allow_sm90a=False), "sm80", "allow_sm90a"),
        (bk.PlanPreference(prefer_backend="CUDNN"), None, "prefer_backend"),
        (bk.PlanPreference(max_workspace_bytes=0), None, "max_workspace_bytes"),
        (bk.PlanPreference(math_precision="TF32"), None, "math_precision"),
    ],
    ids=str,
)
def test_a_preference_is_met_or_refused(preference, family, reason):
    explanation = registry.explain(ring(), "sm_90", preference)
    assert explanation.family == family
    assert any(reason in c.reason for c in explanation.candidates)


def test_select_picks_what_explain_names_on_the_host():
    for element in ("F16", "BF16", "F32", "F32_STRICT", "F64"):
        for cls, plan in ((bk.RingAttentionDescriptor, bk.RingAttentionPlan),
                          (bk.FlashSdpaDescriptor, bk.FlashSdpaPlan)):
            descriptor = cls(1, 2, 4, 4, 40, element=element)
            selected = plan.select(bk.Stream.host(), descriptor)
            assert selected.sku == registry.explain(descriptor, "host").selected
            assert selected.precision_guarantee == selected.sku.precision_guarantee


@pytest.mark.parametrize("arch", ["sm", "", "sm_x", 7, 1.5, (1, 2, 3), object()])
def test_an_unknown_architecture(arch):
    with pytest.raises(bk.InvalidProblemError, match="arch"):
        registry.explain(ring(), arch)


def test_a_descriptor_of_no_op():
    with pytest.raises(bk.InvalidProblemError, match="RingAttentionDescriptor"):
        registry.explain("attention")


def test_register_refuses_what_would_hide_another_op():
    import dataclasses

    spec = registry.get("ring_attention")
    registry.register(spec)  # again: nothing changes
    with pytest.raises(bk.InvalidProblemError, match="registered already"):
        registry.register(dataclasses.replace(spec, descriptor_type=int))
    with pytest.raises(bk.InvalidProblemError, match="belongs to"):
        registry.register(dataclasses.replace(spec, name="other"))
    with pytest.raises(bk.InvalidProblemError, match="OpSpec"):
        registry.register("ring")


@pytest.fixture(scope="module")
def tiny_op(tmp_path_factory, request):
    """The tiny op's own distribution, installed beside nothing."""
    if importlib.util.find_spec("flit_core") is None:
        pytest.skip("capability: flit_core, which builds the tiny op")
    target = tmp_path_factory.mktemp("site")
    source = request.path.parent.parent / "third_party" / "tiny_op"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
         "--target", target, source],
        check=True,
    )
    return target


def test_a_third_party_op_by_entry_point(tiny_op):
    script = textwrap.dedent("""
        import sys; sys.path.insert(0, sys.argv[1])
        import numpy as np
        import baracuda_kernels as bk
        assert "tiny_scale" in bk.registry.ops()
        assert [s.op for s in bk.registry.skus(category="UNARY_ELEMENTWISE")] == [7]
        spec = bk.registry.get("tiny_scale")
        descriptor = spec.descriptor_type(length=5, factor=3.0)
        explanation = bk.registry.explain(descriptor, "host")
        assert explanation.family == "tiny" and explanation.candidates[0].accepted
        assert not bk.registry.explain(descriptor, "sm_90").selected
        plan = spec.plan_type.select(bk.Stream.host(), descriptor)
        x, y = np.arange(5.0), np.full(5, np.nan)
        plan.run(bk.Stream.host(), x, y)
        assert (y == 3 * x).all()
        try:
            plan.run(bk.Stream.host(), x, y[:4])
        except bk.BufferTooSmallError as error:
            assert (error.needed, error.got) == (5, 4)
        else:
            raise AssertionError("a short output was accepted")
        assert bk.registry.explain(bk.FlashSdpaDescriptor(1, 1, 1, 1, 8), "host").family == "host"
    """)
    subprocess.run([sys.executable, "-c", script, tiny_op], check=True, cwd=tiny_op)


def test_a_broken_entry_point_is_logged_and_left_out(tmp_path):
    info = tmp_path / "broken_op-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-op\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[baracuda_kernels.ops]\nbroken = no_such_module:SPEC\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import baracuda_kernels as bk\nprint(bk.registry.ops())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path,
                            capture_output=True, text=True)
    assert "ring_attention" in result.stdout and "no_such_module" in result.stderr
