"""Enums, SKUs, guarantees, preferences and errors: complete, frozen, hashable, picklable."""

import pickle
import types

import pytest

import baracuda_kernels as bk

MEMBERS = {
    bk.Direction: "FORWARD BACKWARD",
    bk.OpCategory: "GEMM UNARY_ELEMENTWISE BINARY_ELEMENTWISE TERNARY_ELEMENTWISE "
    "GATED_ACTIVATION REDUCTION SCAN NORMALIZATION SOFTMAX CONVOLUTION POOLING ATTENTION INDEXING "
    "EMBEDDING SHAPE_LAYOUT SORTING QUANTIZATION RANDOM LOSS SEGMENT_OPS IMAGE FFT LINALG MOE",
    bk.AttentionKind: "ROPE ALIBI SDPA FLASH_ATTENTION KV_CACHE PAGED_ATTENTION HYPER_CONNECTION "
    "SSD_CHUNK_SCAN SELECTIVE_SCAN BLOCK_SPARSE_ATTENTION RING_ATTENTION",
    bk.ElementKind: "F16 BF16 F32 F32_STRICT F64 S8 U8 I32 I64 BOOL FP8_E4M3 FP8_E5M2 S4 U4 BIN "
    "COMPLEX32 COMPLEX64 U32",
    bk.MathPrecision: "F16 BF16 TF32 F32 F64 INT8 FP8_E4M3 FP8_E5M2 INT4 BINARY",
    bk.ArchSku: "SM80 SM89 SM90A HOST",
    bk.BackendKind: "BESPOKE CUTLASS CUBLAS CUDNN CUFFT CUSPARSE CUSOLVER CURAND CUTENSOR NPP "
    "CVCUDA FLASH_ATTENTION_V2 FLASH_INFER OZAKI HOST",
    bk.LayoutSku: "RCR RRR",
    bk.EpilogueKind: "IDENTITY BIAS BIAS_RELU BIAS_GELU BIAS_SILU",
    bk.SequenceLayout: "CONTIGUOUS ZIGZAG STRIPED",
}
ERRORS = {
    bk.UnsupportedError("x"): NotImplementedError,
    bk.InvalidProblemError("x"): ValueError,
    bk.MisalignedOperandError("x"): ValueError,
    bk.WorkspaceTooSmallError(10, 4): bk.BaracudaError,
    bk.BufferTooSmallError(10, 4, "kv_scratch_a"): bk.BaracudaError,
    bk.CudaError(2, "cudaMalloc", "out of memory"): RuntimeError,
    bk.CommunicatorError("x"): RuntimeError,
    bk.NcclError(5, "ncclGroupEnd", 3, "peer died", 2): bk.CommunicatorError,
    bk.NcclTimeoutError("no peer in 1 s", 1, 0, "run"): TimeoutError,
}
SKU = bk.KernelSku(
    "ATTENTION", "RING_ATTENTION", "BF16", None, None, None, "SM80", "BESPOKE",
    bk.PrecisionGuarantee("BF16", "F32", True, True),
)


@pytest.mark.parametrize("enum", MEMBERS, ids=lambda e: e.__name__)
def test_every_member_by_name_number_and_pickle(enum):
    assert " ".join(enum.__members__) == MEMBERS[enum]
    for number, member in enumerate(enum):
        assert member.value == number
        assert enum.parse(member.name.lower()) is enum.parse(number) is enum.parse(member) is member
        assert pickle.loads(pickle.dumps(member)) is member
        assert str(member) == member.name


@pytest.mark.parametrize("value", ["nothing", -1, 999, None, 1.5, True, bk.ArchSku.SM89])
def test_parse_names_the_valid_members(value):
    for arguments, name in (((value,), "SequenceLayout"), ((value, "layout"), "layout")):
        with pytest.raises(
            bk.InvalidProblemError, match=f"^{name}: got .* must be one of CONTIGUOUS, ZIGZAG, STRIPED"
        ):
            bk.SequenceLayout.parse(*arguments)


def test_element_widths():
    bits = {"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "FP8_E4M3": 8, "S4": 4, "BIN": 1}
    assert {name: bk.ElementKind[name].bits for name in bits} == bits
    assert bk.ElementKind.BF16.itemsize == 2


@pytest.mark.parametrize(
    "name", ["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool", "uint32",
             "complex64", "complex128"],
)
def test_an_element_is_its_dtype(name):
    import numpy as np

    kind = bk.ElementKind.of_dtype(name)
    dtype = np.dtype(kind.dtype_name)
    assert dtype.name == name and dtype.itemsize == kind.itemsize
    assert dtype.str[1:] == kind.typestr
    for spelling in (dtype, dtype.type, f"torch.{name}"):
        assert bk.ElementKind.of_dtype(spelling) is kind
    array = np.zeros(2, dtype)
    sources = [array, types.SimpleNamespace(__array_interface__=array.__array_interface__)]
    if name != "bool":  # which NumPy does not export by DLPack everywhere
        sources.append(Exported(array))
    for source in sources:
        view = bk.TensorRef(source)
        assert view.element is kind and np.asarray(view).dtype == dtype


class Exported:
    """An array behind DLPack alone."""

    def __init__(self, array):
        self.__dlpack_device__ = array.__dlpack_device__
        self.__dlpack__ = array.__dlpack__


def test_elements_of_ml_dtypes_and_elements_without_a_dtype():
    import ml_dtypes
    import numpy as np

    kinds = bk.ElementKind
    for name, kind in (("bfloat16", kinds.BF16), ("float8_e4m3fn", kinds.FP8_E4M3),
                       ("float8_e5m2", kinds.FP8_E5M2)):
        dtype = np.dtype(getattr(ml_dtypes, name))
        assert kinds.of_dtype(dtype) is kind and kind.dtype_name == name
        assert dtype.itemsize == kind.itemsize and kind.typestr is None
    # Both are float32 in memory; the name alone means the one that may use tensor cores.
    assert kinds.F32_STRICT.dtype_name == kinds.F32.dtype_name == "float32"
    assert kinds.of_dtype("float32") is kinds.F32
    assert kinds.S4.dtype_name is None and kinds.S4.typestr is None
    for nothing in ("float128", "", "U", object):
        assert kinds.of_dtype(nothing) is None


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_pickle_with_their_fields(error):
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(error, ERRORS[error]) and isinstance(error, bk.BaracudaError)
    assert type(again) is type(error)
    assert str(again) == str(error) and vars(again) == vars(error)


def test_errors_say_what_and_where():
    assert str(bk.BufferTooSmallError(10, 4, "kv_scratch_a")) == (
        "kv_scratch_a: got 4 elements, must hold at least 10"
    )
    assert "bytes" in str(bk.WorkspaceTooSmallError(10, 4))
    text = str(bk.NcclError(5, "ncclGroupEnd", 3, "peer died", 2))
    assert all(part in text for part in ("ncclGroupEnd", "rank 3", "step 2", "peer died", "5"))


def test_every_error_is_in_the_errors_module():
    assert {type(e).__name__ for e in ERRORS} | {"BaracudaError"} == set(bk.errors.__all__)


@pytest.mark.parametrize(
    "value",
    [
        SKU,
        SKU.precision_guarantee,
        bk.PlanPreference(10, False, "HOST", math_precision="F32", deterministic=True),
        bk.RingAttentionDescriptor(1, 4, 8, 9, 64, -0.1, True, "F16", num_kv_heads=2,
                                   sequence_layout="STRIPED"),
        bk.FlashSdpaDescriptor(1, 4, 8, 9, 64),
    ],
    ids=lambda v: type(v).__name__,
)
def test_values_are_frozen_hashable_and_picklable(value):
    again = pickle.loads(pickle.dumps(value))
    assert again == value and hash(again) == hash(value) and len({again, value}) == 1
    assert repr(again) == repr(value)
    assert value != object()
    for name in dir(value):
        if not name.startswith("_") and not callable(getattr(value, name)):
            with pytest.raises(AttributeError):
                setattr(value, name, getattr(value, name))


@pytest.mark.parametrize(
    "value", [SKU, SKU.precision_guarantee, bk.RingAttentionDescriptor(1, 2, 3, 4, 5)],
    ids=lambda v: type(v).__name__,
)
def test_to_dict_is_plain_and_reversible(value):
    import json

    data = json.loads(json.dumps(value.to_dict()))
    assert type(value).from_dict(data) == value
    with pytest.raises(bk.InvalidProblemError, match="colour"):
        type(value).from_dict({**data, "colour": 1})


def test_asking_for_no_determinism_is_not_asking():
    assert bk.PlanPreference(deterministic=False) == bk.PlanPreference()
    assert bk.PlanPreference(deterministic=True) != bk.PlanPreference()


def test_a_field_changes_identity():
    for change in ({"element": "F16"}, {"op": "SDPA"}, {"direction": "BACKWARD"}):
        other = bk.KernelSku.from_dict({**SKU.to_dict(), **change})
        assert other != SKU and hash(other) != hash(SKU)
    base = bk.RingAttentionDescriptor(1, 2, 3, 4, 5)
    for change in ({"scale": 2.0}, {"is_causal": True}, {"sequence_layout": "ZIGZAG"},
                   {"num_kv_heads": 1}, {"element": "F64"}, {"key_len": 5}):
        assert bk.RingAttentionDescriptor.from_dict({**base.to_dict(), **change}) != base


def test_a_sku_has_a_direction():
    assert SKU.direction is bk.Direction.FORWARD
    fields = [getattr(SKU, name) for name in list(SKU.to_dict())]
    assert list(SKU.to_dict())[-1] == "direction"
    backward = bk.KernelSku(*fields[:-1], direction="backward")
    assert backward.direction is bk.Direction.BACKWARD and "direction=BACKWARD" in repr(backward)
    assert pickle.loads(pickle.dumps(backward)) == backward
    assert bk.KernelSku.from_dict(backward.to_dict()) == backward
    old = {name: value for name, value in SKU.to_dict().items() if name != "direction"}
    assert bk.KernelSku.from_dict(old) == SKU  # as written before kernels had a direction
    with pytest.raises(bk.InvalidProblemError, match="direction: got 'UP'"):
        bk.KernelSku.from_dict({**old, "direction": "UP"})
    del old["op"]
    with pytest.raises(bk.InvalidProblemError, match=r"missing keys \['op'\]"):
        bk.KernelSku.from_dict(old)


def test_an_op_is_a_name_of_its_category_or_a_number():
    def sku(category, op):
        return bk.KernelSku.from_dict({**SKU.to_dict(), "category": category, "op": op}).op

    assert bk.AttentionKind.RING_ATTENTION.category is bk.OpCategory.ATTENTION
    assert sku("ATTENTION", 3) is sku("ATTENTION", "flash_attention")
    assert sku("ATTENTION", 3) is bk.AttentionKind.FLASH_ATTENTION
    assert sku("ATTENTION", 500) == 500 and sku("FFT", 3) == 3  # of another package
    assert type(sku("ATTENTION", 500)) is type(sku("FFT", 3)) is int
    for category, op, message in (
        ("ATTENTION", "RING", "op: got 'RING'"), ("ATTENTION", -1, "op: got -1"),
        ("ATTENTION", 65536, "op: got 65536"), ("ATTENTION", True, "op: got True"),
        ("FFT", "RADIX_2", "no names are known in FFT"), ("FFT", 65536, r"\[0, 65535\]"),
    ):
        with pytest.raises(bk.InvalidProblemError, match=message):
            sku(category, op)
    with pytest.raises(bk.InvalidProblemError, match="AttentionKind does not name"):
        class OtherKind(bk.registry.OpKind, category=bk.OpCategory.ATTENTION):
            MINE = 0


def test_scale_is_float64_and_defaults_to_the_root():
    assert bk.RingAttentionDescriptor(1, 1, 1, 1, 96).scale == 1 / 96**0.5
    assert bk.RingAttentionDescriptor(1, 1, 1, 1, 64, 1 / 3).scale == 1 / 3


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"batch_size": -1}, "batch_size"), ({"query_len": -5}, "query_len"),
        ({"key_len": -1}, "key_len"), ({"head_dim": -64}, "head_dim"),
        ({"num_heads": -1}, "num_heads"), ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"num_kv_heads": 0}, "num_kv_heads"), ({"scale": float("nan")}, "scale"),
        ({"scale": float("inf")}, "scale"), ({"query_len": 2**60}, "2\\*\\*59"),
    ],
    ids=str,
)
def test_a_descriptor_that_is_no_problem(change, name):
    good = {"batch_size": 1, "num_heads": 4, "query_len": 8, "key_len": 8, "head_dim": 64}
    for cls, plan in ((bk.RingAttentionDescriptor, bk.RingAttentionPlan),
                      (bk.FlashSdpaDescriptor, bk.FlashSdpaPlan)):
        descriptor = cls(**{**good, **change})
        for call in (lambda d: plan.select(bk.Stream.host(), d), bk.registry.explain):  # noqa: B023
            with pytest.raises(bk.InvalidProblemError, match=name):
                call(descriptor)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"batch_size": 1.5}, "batch_size"), ({"scale": "1"}, "scale"), ({"is_causal": 1}, "is_causal"),
     ({"element": "F17"}, "element: got 'F17'"),
     ({"sequence_layout": "spiral"}, "sequence_layout: got 'spiral'"),
     ({"query_len": True}, "query_len"), ({"key_len": 2**80}, "key_len")],
    ids=str,
)
def test_a_field_of_the_wrong_type(change, name):
    good = {"batch_size": 1, "num_heads": 4, "query_len": 8, "key_len": 8, "head_dim": 64}
    with pytest.raises(bk.InvalidProblemError, match=name):
        bk.RingAttentionDescriptor(**{**good, **change})


@pytest.mark.parametrize(
    "fields",
    [{"max_workspace_bytes": -1}, {"max_workspace_bytes": "1"}, {"allow_sm90a": 1},
     {"prefer_backend": "mine"}, {"math_precision": "F33"}, {"deterministic": 1}],
    ids=str,
)
def test_a_preference_of_the_wrong_type(fields):
    (name,) = fields
    with pytest.raises(bk.InvalidProblemError, match=f"^{name}: got"):
        bk.PlanPreference(**fields)
