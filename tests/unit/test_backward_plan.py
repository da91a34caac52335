"""FlashSdpaBackwardPlan as data and as a call: what explains, what selects, what is refused."""

import numpy as np
import pytest
from helpers.gradients import HOST, descriptor, draw, forward

import baracuda_kernels as bk
from baracuda_kernels import registry
from baracuda_kernels.ops.attention import _families

needs_cuda_build = pytest.mark.skipif(
    not bk._build_info()["cuda_built"], reason="capability: CUDA kernels in the build"
)
BACKWARD = bk.Direction.BACKWARD


def problem(**fields):
    good = {"batch_size": 1, "num_heads": 2, "query_len": 8, "key_len": 8, "head_dim": 64,
            "element": "BF16"}  # fmt: skip
    return bk.FlashSdpaDescriptor(**{**good, **fields})


def test_the_registry_knows_the_direction():
    spec = registry.get("flash_sdpa")
    assert spec.plan_type("backward") is bk.FlashSdpaBackwardPlan
    backward = registry.skus(op="FLASH_ATTENTION", direction="BACKWARD")
    # simt and sm80 have one architecture; what they multiply in tells them apart.
    on_tensor_cores = [(arch, element) for arch in ("SM80", "SM90A") for element in ("F16", "BF16")]
    assert sorted((sku.arch.name, sku.element.name) for sku in backward) == sorted([
        *((arch, element) for arch in ("SM80", "HOST")
          for element in ("F16", "BF16", "F32", "F32_STRICT", "F64")), *on_tensor_cores,
        *on_tensor_cores])  # one with a fixed order
    unordered = [(sku.arch.name, sku.element.name) for sku in backward
                 if not sku.precision_guarantee.deterministic]
    assert sorted(unordered) == sorted(on_tensor_cores)
    for sku in backward:
        guarantee = sku.precision_guarantee
        fast = guarantee.math_precision.name in ("F16", "BF16")
        wide = "F64" if sku.element is bk.ElementKind.F64 else "F32"
        assert guarantee.accumulator.name == wide
        assert guarantee.math_precision.name == (sku.element.name if fast else wide)
        assert guarantee.deterministic == guarantee.bit_stable_on_same_hardware
        assert guarantee.deterministic or fast
    # Of sm80, as of sm90a, each twice: the fast one first.
    assert [(sku.element.name, sku.precision_guarantee.deterministic)
            for sku in backward if sku.arch is bk.ArchSku.SM90A] == [
        ("F16", False), ("BF16", False), ("F16", True), ("BF16", True)]  # fmt: skip
    assert len(set(backward)) == len(backward)
    forward = registry.skus(op="FLASH_ATTENTION", direction="FORWARD", arch="SM90A")
    assert forward and all(sku.precision_guarantee.deterministic for sku in forward)


def test_candidates_on_any_machine():
    explanation = registry.explain(problem(), "sm_90", direction="backward")
    reasons = {c.family: c.reason for c in explanation.candidates}
    assert list(reasons) == [
        "sm90a", "sm90a-deterministic", "sm80", "sm80-deterministic", "simt", "host"]
    if bk._build_info()["cuda_built"]:
        assert reasons["sm90a"] == reasons["sm90a-deterministic"] == ""
        assert reasons["sm80"] == reasons["sm80-deterministic"] == reasons["simt"] == ""
        assert explanation.family == "sm90a" and explanation.selected.direction is BACKWARD
    else:
        assert explanation.family is None
    assert all(c.sku.direction is BACKWARD for c in explanation.candidates)
    assert "flash_sdpa BACKWARD on sm_90" in str(explanation)


@needs_cuda_build
def test_sums_in_any_order_are_not_deterministic():
    explanation = registry.explain(
        problem(), "sm_90", bk.PlanPreference(deterministic=True), direction="backward")
    reasons = {c.family: c.reason for c in explanation.candidates}
    assert explanation.family == "sm90a-deterministic"
    guarantee = explanation.selected.precision_guarantee
    assert guarantee.deterministic and guarantee.bit_stable_on_same_hardware
    assert guarantee.math_precision.name == "BF16"
    for head_dim, family in ((256, "sm90a-deterministic"), (96, "sm80-deterministic"), (72, "simt")):
        assert registry.explain(
            problem(head_dim=head_dim), "sm_90", bk.PlanPreference(deterministic=True),
            direction="backward").family == family
    assert registry.explain(problem(), "sm_80", bk.PlanPreference(deterministic=True),
                            direction="backward").family == "sm80-deterministic"
    assert reasons["sm90a"] == reasons["sm80"] == \
        "deterministic: got True, must be None: the kernel's sums have no fixed order"
    assert registry.explain(problem(), "sm_90", bk.PlanPreference(deterministic=True)).family \
        == "sm90a", "the forward is"


@needs_cuda_build
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_scratch_of_sm90a_counts_as_workspace(head_dim):
    # Two tiles of 64 rows, each with four numbers a row (eight at head_dim 64) and a sum of dq.
    needed = 2 * 64 * 4 * ((8 if head_dim == 64 else 4) + head_dim)
    preference = bk.PlanPreference(max_workspace_bytes=needed - 1)
    explanation = registry.explain(problem(head_dim=head_dim), "sm_90", preference,
                                   direction="backward")
    reasons = {c.family: c.reason for c in explanation.candidates}
    assert reasons["sm90a"] == (
        f"max_workspace_bytes: got {needed - 1}, must be at least {needed}")
    # And a counter and a word for each tile, at head_dim 256 two, in sixteens.
    words = 32 if head_dim == 256 else 16
    assert reasons["sm90a-deterministic"] == (
        f"max_workspace_bytes: got {needed - 1}, must be at least {needed + words}")
    # sm80 keeps two numbers a row; its other kernel a counter and a word for each tile, too.
    needed = 2 * 64 * 4 * (2 + head_dim)
    assert explanation.family == "sm80"
    preference = bk.PlanPreference(max_workspace_bytes=needed - 1)
    explanation = registry.explain(problem(head_dim=head_dim), "sm_90", preference,
                                   direction="backward")
    reasons = {c.family: c.reason for c in explanation.candidates}
    assert reasons["sm80"] == (
        f"max_workspace_bytes: got {needed - 1}, must be at least {needed}")
    assert explanation.family == "simt"


@needs_cuda_build
@pytest.mark.parametrize(("fields", "has_words"), [
    ({}, True), ({"query_len": 257}, True), ({"query_len": 256}, False), ({"num_heads": 4}, False),
    ({"query_len": 2049}, False), ({"num_kv_heads": 4}, False), ({"head_dim": 64}, False),
    ({"key_len": 9}, True), ({"is_causal": True}, True)])  # fmt: skip
def test_short_calls_of_sm90a_have_a_word_for_each_tile_of_rows(fields, has_words):
    """Their first addition to dq stores; by what all steps of a call have in common."""
    desc = problem(**{"batch_size": 32, "num_heads": 16, "query_len": 512, "key_len": 512,
                      "head_dim": 128, **fields})  # fmt: skip
    tiles = desc.batch_size * desc.num_heads * -(-desc.query_len // 64)
    numbers = 8 if desc.head_dim == 64 else 4
    needed = tiles * 64 * 4 * (numbers + desc.head_dim) + has_words * -(-4 * (tiles + 1) // 16) * 16
    for limit, is_enough in ((needed, True), (needed - 1, False)):
        explanation = registry.explain(
            desc, "sm_90", bk.PlanPreference(max_workspace_bytes=limit), direction="backward")
        reasons = {c.family: c.reason for c in explanation.candidates}
        assert (reasons["sm90a"] == "") == is_enough


@needs_cuda_build
@pytest.mark.parametrize(
    ("fields", "arch", "family"),
    [
        ({}, "sm_80", "sm80"), ({"element": "F64"}, "sm_90", "simt"), ({}, "host", "host"),
        ({"head_dim": 257}, "sm_90", None), ({"head_dim": 257}, "host", "host"),
        ({"scale": -1.0}, "sm_90", "simt"), ({"element": "S8"}, "host", None),
        ({"element": "F16"}, "sm_90", "sm90a"), ({"head_dim": 128}, "sm_90", "sm90a"),
        ({"head_dim": 256}, "sm_90", "sm90a"), ({"head_dim": 96}, "sm_90", "sm80"),
        ({"head_dim": 192}, "sm_80", "sm80"), ({"head_dim": 72}, "sm_80", "simt"),
        ({"scale": 1e-30}, "sm_90", "sm80"), ({}, "sm_100", "sm80"), ({"scale": 0.0}, "sm_80", "simt"),
        ({"element": "F32"}, "sm_80", "simt"), ({"query_len": 2**30 + 1}, "sm_80", "simt"),
        ({"key_len": 2**31}, "sm_90", "simt"), ({"batch_size": 2**20, "num_heads": 2**11,
                                                 "num_kv_heads": 2**11}, "sm_90", "simt"),
    ],
    ids=str,
)  # fmt: skip
def test_explain(fields, arch, family):
    assert registry.explain(problem(**fields), arch, direction="backward").family == family


@pytest.mark.parametrize(
    ("preference", "reason"),
    [
        (bk.PlanPreference(math_precision="BF16"), "math_precision: got BF16, must be F32"),
        (bk.PlanPreference(max_workspace_bytes=100), "max_workspace_bytes: got 100, must be at least 4224"),
        (bk.PlanPreference(prefer_backend="CUDNN"), "prefer_backend: got CUDNN, must be"),
    ],
    ids=str,
)
def test_a_preference_that_the_host_does_not_meet(preference, reason):
    with pytest.raises(bk.UnsupportedError, match=f"flash_sdpa BACKWARD: no kernel.*{reason}"):
        bk.FlashSdpaBackwardPlan.select(problem(), HOST, preference)


def test_deterministic_is_met_or_refused():
    for preference in (bk.PlanPreference(deterministic=True), bk.PlanPreference()):
        plan = bk.FlashSdpaBackwardPlan.select(problem(), HOST, preference)
        assert plan.family == "host" and plan.precision_guarantee.deterministic

    class Unordered(_families.Family):
        def guarantee(self, element, direction=BACKWARD):
            return bk.PrecisionGuarantee(self.math[element], "F32", False, False)

    host = next(f for f in _families.FAMILIES if f.name == "host")
    fast = Unordered(**{name: getattr(host, name) for name in host.__dataclass_fields__})
    arch = registry.Architecture.parse("host")
    assert fast.refusal(problem(), arch, bk.PlanPreference(), 0, BACKWARD) == ""
    reason = fast.refusal(problem(), arch, bk.PlanPreference(deterministic=True), 0, BACKWARD)
    assert reason == "deterministic: got True, must be None: the kernel's sums have no fixed order"


def test_select_takes_either_order_and_is_the_only_way():
    for arguments in ((problem(), HOST), (HOST, problem())):
        assert bk.FlashSdpaBackwardPlan.select(*arguments).descriptor == problem()
    with pytest.raises(TypeError, match="use FlashSdpaBackwardPlan.select"):
        bk.FlashSdpaBackwardPlan()
    with pytest.raises(bk.InvalidProblemError, match="num_kv_heads"):
        bk.FlashSdpaBackwardPlan.select(problem(num_heads=3, num_kv_heads=2), HOST)


# Operands. B 1, H 4, Hkv 2, Q 8, K 6, D 16, bf16.


def good():
    x = draw("bf16", 0, heads=4, kv_heads=2, query_len=8, key_len=6, dlse=True)
    y, lse = forward(x)
    return {**x._asdict(), "y": y, "lse": lse,
            **{"d" + n: np.full_like(getattr(x, n), np.nan) for n in "qkv"},
            "scratch": np.empty(4 * 8 * 18 * 4, np.uint8)}  # fmt: skip


def frozen(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def off_by_one(a):
    raw = np.zeros(a.nbytes + 32, np.uint8)
    start = 17 - raw.ctypes.data % 16
    return raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)


F32 = np.float32
BAD = [
    ("dy", lambda a: None, bk.InvalidProblemError, "dy: got None, must be given"),
    ("y", lambda a: a[:, :, :7], bk.InvalidProblemError, "y: got shape"),
    ("dy", lambda a: a.astype(F32), bk.InvalidProblemError, "dy: got F32, must be BF16"),
    ("dy", lambda a: a.swapaxes(2, 3).copy().swapaxes(2, 3), bk.InvalidProblemError,
     "dy: got stride .* in the last dimension"),
    ("lse", lambda a: a.astype(np.float64), bk.InvalidProblemError,
     "lse: got F64, must be F32, the accumulator's type"),
    ("lse", lambda a: a[..., None], bk.InvalidProblemError, "lse: got shape"),
    ("dlse", lambda a: a.astype(np.float16), bk.InvalidProblemError, "dlse: got F16, must be F32"),
    ("dlse", lambda a: a[:, :2], bk.InvalidProblemError, "dlse: got shape"),
    ("dq", lambda a: a.astype(F32), bk.InvalidProblemError, "dq: got F32, must be BF16"),
    ("dq", frozen, bk.InvalidProblemError, "dq: got read-only memory"),
    ("dk", lambda a: a.astype(F32), bk.InvalidProblemError, "dk, dv: got F32 and BF16"),
    ("dv", lambda a: a.astype(np.float16), bk.InvalidProblemError, "dk, dv: got BF16 and F16"),
    ("dk", lambda a: np.broadcast_to(a[:, :1], a.shape), bk.InvalidProblemError,
     "dk: got read-only memory"),
    ("scratch", lambda a: None, bk.InvalidProblemError, "scratch: got None"),
    ("scratch", lambda a: a[:-1], bk.WorkspaceTooSmallError, "scratch: got 2303 bytes"),
    ("scratch", off_by_one, bk.MisalignedOperandError, "scratch: got address"),
    ("dq", off_by_one, bk.MisalignedOperandError, "dq: got address"),
    ("lse", off_by_one, bk.MisalignedOperandError, "lse: got address"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "error", "message"), BAD, ids=lambda v: str(v)[:24])
def test_a_bad_operand(name, spoil, error, message):
    given = good()
    plan = bk.FlashSdpaBackwardPlan.select(
        descriptor(draw("bf16", 0, heads=4, kv_heads=2, query_len=8, key_len=6)), HOST)
    plan.can_implement(bk.FlashSdpaBackwardArgs(**given))
    args = bk.FlashSdpaBackwardArgs(**{**given, name: spoil(given[name])})
    for call in (lambda: plan.can_implement(args), lambda: plan.run(HOST, args)):
        with pytest.raises(error, match=message):
            call()
    assert all(np.isnan(given[n].astype(F32)).all() for n in ("dq", "dk", "dv"))


def test_outputs_overlap_nothing():
    given = good()
    plan = bk.FlashSdpaBackwardPlan.select(
        descriptor(draw("bf16", 0, heads=4, kv_heads=2, query_len=8, key_len=6)), HOST)
    for output, other in (("dq", "q"), ("dq", "dy"), ("dk", "k"), ("dv", "dk"), ("dv", "v"),
                          ("dq", "y")):
        with pytest.raises(bk.InvalidProblemError, match="overlaps"):
            plan.can_implement(bk.FlashSdpaBackwardArgs(**{**given, output: given[other]}))


def test_arguments_are_checked_once_a_plan():
    given = good()
    x = draw("bf16", 0, heads=4, kv_heads=2, query_len=8, key_len=6)
    args = bk.FlashSdpaBackwardArgs(**given)
    plans = [bk.FlashSdpaBackwardPlan.select(descriptor(x, is_causal=c), HOST) for c in (False, True)]
    found = []
    for plan in (plans[0], plans[1], plans[0]):
        plan.run(HOST, args)
        found.append(given["dq"].copy())
    assert np.array_equal(found[0], found[2]) and not np.array_equal(found[0], found[1])
    assert args.dlse.shape == (1, 4, 8) and args.scratch is not None
