"""The choice of a kernel and its reasons, for any architecture, without a GPU."""

import importlib.util
import json
import subprocess
import sys
import textwrap

import numpy as np
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
    spec = registry.get("ring_attention")
    assert spec.plan_types == {bk.Direction.FORWARD: bk.RingAttentionPlan,
                               bk.Direction.BACKWARD: bk.RingAttentionBackwardPlan}
    assert spec.plan_type() is bk.RingAttentionPlan
    assert registry.specs()[0] is spec, "the command line means the first op by default"
    assert {s.name for s in registry.specs()} == set(registry.ops())
    with pytest.raises(bk.UnsupportedError, match="ring_attention"):
        registry.get("ring")


def test_skus_are_complete_and_unique_per_op():
    skus = registry.skus(op="RING_ATTENTION")
    assert len(set(skus)) == len(skus)
    assert sum(s.direction is bk.Direction.FORWARD for s in skus) == 2 + 2 + 5 + 5
    backward = {s.arch.name for s in skus if s.direction is bk.Direction.BACKWARD}
    assert backward >= {"SM90A", "SM80", "HOST"}
    assert {s.category for s in skus} == {bk.OpCategory.ATTENTION}
    # f64 state is kept in f64, every other in f32.
    for sku in skus:
        wide = sku.element is bk.ElementKind.F64
        expected = bk.ElementKind.F64 if wide else bk.ElementKind.F32
        assert sku.precision_guarantee.accumulator is expected


def test_sku_filters():
    strict = registry.skus(op="RING_ATTENTION", element="BF16", math_precision="F32",
                           direction="FORWARD")
    assert [s.arch.name for s in strict] == ["SM80", "HOST"]
    assert registry.skus(backend="HOST", element=bk.ElementKind.F64, op=3)[0].op.name == (
        "FLASH_ATTENTION"
    )
    unordered = registry.skus(deterministic=False)
    assert {(s.arch.name, s.direction.name) for s in unordered} == {
        ("SM80", "BACKWARD"), ("SM90A", "BACKWARD")}  # fmt: skip
    named = registry.skus(op="ring_attention")
    assert named == registry.skus(op=bk.AttentionKind.RING_ATTENTION) != []
    assert named == registry.skus(op=10, category="ATTENTION")
    for bad in ({"colour": 1}, {"deterministic": "yes"}, {"arch": "SM70"}, {"op": "RING"},
                {"op": None}, {"precision_guarantee": None}, {"direction": "SIDEWAYS"},
                {"element": bk.ArchSku.SM80}, {"math_precision": 1.5},
                {"op": bk.ArchSku.SM80}):
        with pytest.raises(bk.InvalidProblemError, match="^(filter|deterministic|arch|op|direction|"
                           "element|math_precision): got .*, must be ") as refusal:
            registry.skus(**bad)
        assert next(iter(bad)) in str(refusal.value)


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
        ({"scale": 1e-40}, "range of float32"), ({"scale": 1e39}, "range of float32"),
        ({"query_len": 2**30 + 1}, "2\\*\\*30"), ({"key_len": 2**31}, "2\\*\\*30"),
        ({"batch_size": 2**20, "query_len": 2**18}, "query tiles, must be at most"),
    ],
    ids=str,
)
def test_what_the_tensor_core_kernels_cannot_count_or_scale(fields, reason):
    """Known before a launch, so select and explain name the kernel that runs."""
    import re

    explanation = registry.explain(ring(**fields), "sm_90")
    refused = {c.family: c.reason for c in explanation.candidates}
    assert re.search(reason, refused["sm90a"])
    # simt scales in float32 as well.
    served = (None,) if fields.get("scale") == 1e39 else ("sm80", "simt")
    assert explanation.family in served


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


@pytest.mark.parametrize(
    "arch",
    ["sm", "", "sm_x", 7, 1.5, (1, 2, 3), object(), "²", "sm_9²", "٩٠", "9" * 5000, (9, "0"), (9, 10),
     (9, -1), (9, 0.0), (9, True), True, "9.", ".90", "9.0.0", "9.00", "1.00", "90.", "sm_900.0",
     bk.AttentionKind.RING_ATTENTION],
)  # fmt: skip
def test_an_unknown_architecture(arch):
    with pytest.raises(bk.InvalidProblemError, match="arch"):
        registry.explain(ring(), arch)


@pytest.mark.parametrize("arch", [90, np.int64(90), (9, 0), (np.int8(9), np.uint8(0)), "9.0", "sm_9.0", "sm90A"])
def test_a_known_architecture(arch):
    parsed = registry.Architecture.parse(arch)
    assert parsed == registry.Architecture(90) and type(parsed.compute_capability) is int


def test_a_refusal_names_the_architectures_that_would_do():
    for arch in ("sm_75", "sm_80", "sm_100"):
        reasons = {c.family: c.reason for c in registry.explain(ring(), arch).candidates}
        assert reasons["sm90a"].endswith("must be sm_90"), "no later one"
        assert (arch != "sm_75") or reasons["sm80"].endswith("must be sm_80 or later")


@pytest.mark.parametrize("direction", ["FORWARD", "BACKWARD"])
@pytest.mark.parametrize("element", ["F16", "F32", "F32_STRICT", "F64", "S8"])
def test_candidates_have_skus_that_exist(element, direction):
    known = set(registry.skus())
    for candidate in registry.explain(ring(element=element), "sm_90", None, direction).candidates:
        assert candidate.sku in known
        assert candidate.reason or candidate.sku.element.name == element


def test_the_op_s_direction_is_part_of_what_is_asked():
    forward = registry.explain(ring(), "host")
    assert forward == registry.explain(ring(), "host", direction="forward")
    assert forward.direction is bk.Direction.FORWARD
    assert forward.to_dict()["direction"] == "FORWARD"
    assert forward.selected.direction is bk.Direction.FORWARD
    backward = registry.explain(ring(), "host", direction="BACKWARD")
    assert backward.direction is backward.selected.direction is bk.Direction.BACKWARD
    assert backward != forward and "ring_attention BACKWARD on host" in str(backward)
    of_both = [registry.skus(direction=d, op="RING_ATTENTION") for d in bk.Direction]
    assert of_both[0] + of_both[1] == registry.skus(op="RING_ATTENTION") and all(of_both)
    assert all(sku.direction is bk.Direction.BACKWARD for sku in of_both[1])
    with pytest.raises(bk.InvalidProblemError, match="FORWARD, BACKWARD"):
        registry.explain(ring(), "host", direction="SIDEWAYS")


class Forward:
    pass


class Backward:
    pass


def two_way(candidates=lambda *a: []):
    """An op with both directions, which is not registered."""
    base = registry.get("ring_attention").skus()[-1][1]
    skus = [("both", bk.KernelSku.from_dict({**base.to_dict(), "direction": d.name}))
            for d in bk.Direction]
    plans = {"BACKWARD": Backward, bk.Direction.FORWARD: Forward}
    return registry.OpSpec("both", int, plans, lambda: skus, candidates)


def test_a_plan_type_a_direction():
    seen = []

    def candidates(descriptor, arch, preference, direction):
        seen.append((descriptor, arch.name, preference, direction))
        return [registry.Candidate("both", dict_of[direction], "", object())]

    spec = two_way(candidates)
    dict_of = {sku.direction: sku for _, sku in spec.skus()}
    assert spec.plan_type("BACKWARD") is Backward and spec.plan_type() is Forward
    assert set(spec.directions) == set(bk.Direction)
    for direction in bk.Direction:
        explanation = spec.explain(7, "host", direction=direction)
        assert explanation.selected is dict_of[direction]
        assert explanation.direction is direction
        assert seen.pop() == (7, "host", bk.PlanPreference(), direction)
    assert "both BACKWARD on host" in str(spec.explain(7, "host", direction="BACKWARD"))
    with pytest.raises(TypeError):
        spec.plan_types[bk.Direction.FORWARD] = Backward
    with pytest.raises(bk.UnsupportedError, match="both BACKWARD: no kernel fits on host"):
        two_way().explain(7, "host", direction="BACKWARD").require()


def test_an_op_with_one_direction():
    sku = registry.get("ring_attention").skus()[-1][1]
    spec = registry.OpSpec.forward_only(
        "one", int, Forward, lambda: [("one", sku)],
        lambda descriptor, arch, preference: [registry.Candidate("one", sku, f"{descriptor}")],
    )
    assert spec.plan_types == {bk.Direction.FORWARD: Forward}
    assert spec.explain(7, "host").candidates[0].reason == "7"
    with pytest.raises(bk.UnsupportedError, match="must be one of one's: FORWARD"):
        spec.plan_type(bk.Direction.BACKWARD)


@pytest.mark.parametrize("plan_types", [Forward, {}, {"SIDEWAYS": Forward}], ids=str)
def test_plan_types_that_are_none(plan_types):
    with pytest.raises(bk.InvalidProblemError, match="plan_types|Direction"):
        registry.OpSpec("none", int, plan_types, list, list)


def test_a_candidate_s_entry_is_no_part_of_what_it_says():
    sku = registry.get("ring_attention").skus()[0][1]
    one, other = (registry.Candidate("f", sku, "r", object()) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert "entry" not in one.to_dict() and "entry" not in repr(one)


def test_what_an_op_takes():
    spec = registry.get("flash_sdpa")
    assert [e.name for e in spec.elements] == ["F16", "BF16", "F32", "F32_STRICT", "F64"]
    assert {name: e.name for name, e in spec.dtypes.items()} == {
        "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
    assert spec.problem() == bk.FlashSdpaDescriptor(1, 8, 4096, 4096, 128, element="BF16")
    ring_spec = registry.get("ring_attention")
    assert ring_spec.problem(layout=bk.SequenceLayout.ZIGZAG, query_len=8, kv_heads=2) == \
        bk.RingAttentionDescriptor(1, 8, 8, 8, 128, element="BF16", num_kv_heads=2,
                                   sequence_layout="ZIGZAG")


def test_a_descriptor_of_no_op():
    with pytest.raises(bk.InvalidProblemError, match="RingAttentionDescriptor"):
        registry.explain("attention")


def test_register_refuses_what_would_hide_another_op():
    import dataclasses

    spec = registry.get("ring_attention")
    registry.register(spec)  # again: nothing changes
    with pytest.raises(bk.InvalidProblemError, match="must be one that no other op has"):
        registry.register(dataclasses.replace(spec, descriptor_type=int))
    with pytest.raises(bk.InvalidProblemError, match="has it"):
        registry.register(dataclasses.replace(spec, name="other"))
    with pytest.raises(bk.InvalidProblemError, match="OpSpec"):
        registry.register("ring")


@pytest.fixture(scope="module")
def tiny_op(tmp_path_factory, request):
    """The distribution of the tiny op, installed into an empty folder."""
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
        both = bk.registry.skus(category="UNARY_ELEMENTWISE")
        assert [(s.op, s.op.name, s.direction.name) for s in both] == [
            (7, "SCALE", "FORWARD"), (7, "SCALE", "BACKWARD")]
        assert bk.registry.skus(op="SCALE", direction="BACKWARD") == both[1:]
        assert bk.KernelSku.from_dict(both[1].to_dict()) == both[1]
        # The same number of another category is another op.
        assert all(s.category.name == "ATTENTION" for s in bk.registry.skus(op="SSD_CHUNK_SCAN"))
        assert bk.registry.skus(op=7) == both
        spec = bk.registry.get("tiny_scale")
        descriptor = spec.descriptor_type(length=5, factor=3.0)
        explanation = bk.registry.explain(descriptor, "host")
        assert explanation.family == "tiny" and explanation.candidates[0].accepted
        assert not bk.registry.explain(descriptor, "sm_90").selected
        plan = spec.plan_type().select(bk.Stream.host(), descriptor)
        x, y = np.arange(5.0), np.full(5, np.nan)
        plan.run(bk.Stream.host(), x, y)
        assert (y == 3 * x).all()
        backward = spec.plan_type("BACKWARD").select(bk.Stream.host(), descriptor)
        assert backward.sku == both[1] and plan.sku == both[0]
        dx = np.full(5, np.nan)
        backward.run(bk.Stream.host(), np.ones(5), dx)
        assert (dx == 3).all()
        try:
            plan.run(bk.Stream.host(), x, y[:4])
        except bk.BufferTooSmallError as error:
            assert (error.needed, error.got) == (5, 4)
        else:
            raise AssertionError("a short output was accepted")
        assert bk.registry.explain(bk.FlashSdpaDescriptor(1, 1, 1, 1, 8), "host").family == "host"
    """)
    subprocess.run([sys.executable, "-c", script, tiny_op], check=True, cwd=tiny_op)


def command(site, *arguments):
    """The JSON and the text of a command with the tiny op installed."""
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        "from baracuda_kernels.cli import main; main()"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", program, site, *arguments, *json_flag], cwd=site,
                       check=True, capture_output=True, text=True).stdout
        for json_flag in (["--json"], [])
    ]
    return json.loads(outputs[0]), outputs[1]


def test_a_third_party_op_on_the_command_line(tiny_op):
    """`skus`, `info` and `explain` show it as they show built-in ops."""
    rows, text = command(tiny_op, "skus", "--op", "tiny_scale")
    assert [(r["op"], r["direction"], r["family"]) for r in rows["skus"]] == [
        ("SCALE", "FORWARD", "tiny"), ("SCALE", "BACKWARD", "tiny")]
    assert text.count("tiny_scale") == 2 and "backward" in text

    facts, text = command(tiny_op, "info")
    ours = [r for r in facts["runs_here"] if r["op"] == "tiny_scale" and r["device"] == "host"]
    assert [(r["direction"], r["dtype"], r["family"]) for r in ours] == [
        ("FORWARD", "F64", "tiny"), ("BACKWARD", "F64", "tiny")]
    assert "tiny_scale backward (length 5, factor 3.0)" in text

    described = ("explain", "--length", "9", "--op", "tiny_scale", "--direction", "backward")
    report, text = command(tiny_op, *described, "--arch", "host")
    assert (report["op"], report["direction"], report["family"]) == (
        "tiny_scale", "BACKWARD", "tiny")
    assert "tiny_scale backward on host" in text and "selected" in text
    report, text = command(tiny_op, *described, "--arch", "sm_90")
    assert report["family"] is None and "must be host" in text
    # The default op is still the built-in one, with its own options.
    assert command(tiny_op, "explain", "--layout", "zigzag")[0]["op"] == "ring_attention"


BROKEN_PLUGINS = {
    "missing": None,
    "syntax": "SPEC = (",
    "runtime": "raise RuntimeError('no license')",
    "key": "{}['absent']",
    "quits": "import sys; sys.exit(3)",
    "factory": "def SPEC():\n    return {}['absent']",
    "nothing": "SPEC = None",
    "skus": "import dataclasses\nfrom baracuda_kernels import registry\n"
            "def _skus():\n    return 1 / 0\n"
            "def SPEC():\n    return registry.OpSpec.forward_only("
            "'broken', dict, list, _skus, list)",
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_PLUGINS)
def test_a_broken_entry_point_is_logged_and_left_out(tmp_path, kind):
    """Whatever it raises, the library works without it, and ``info`` names it."""
    info = tmp_path / "broken_op-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-op\nVersion: 1.0\n")
    module = f"{kind}_plugin"
    (info / "entry_points.txt").write_text(f"[baracuda_kernels.ops]\nbroken = {module}:SPEC\n")
    if BROKEN_PLUGINS[kind] is not None:
        (tmp_path / f"{module}.py").write_text(BROKEN_PLUGINS[kind])
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import baracuda_kernels as bk\nprint(bk.registry.ops())\n"
        "assert bk.registry.skus()\n"
        "from baracuda_kernels.cli import main\n"
        "main(sys.argv[1:])\n"
    )

    def run(*arguments):
        return subprocess.run([sys.executable, "-c", script, *arguments], check=True, cwd=tmp_path,
                              capture_output=True, text=True)

    result = run("info")
    assert "ring_attention" in result.stdout and module in result.stderr
    assert f"plug-in left out: broken = {module}:SPEC (" in result.stdout
    assert "broken'" not in result.stdout.splitlines()[0]
    if kind == "key":
        report = json.loads(run("info", "--json").stdout.split("\n", 1)[1])
        assert report["plugins_left_out"] == {"broken = key_plugin:SPEC": "KeyError: 'absent'"}
        assert "ring_attention" in run("explain", "--arch", "host").stdout
