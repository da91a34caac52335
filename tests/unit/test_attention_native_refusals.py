"""What the attention entries of the C ABI refuse, before they write anything."""

import ctypes as ct
from itertools import chain

import numpy as np
import pytest
from helpers import backward_abi
from helpers import ring_abi as abi
from helpers.c_headers import structure
from helpers.gradients import draw, forward
from helpers.host_abi import CAUSAL, ELEMENT, FIRST, LAST, Params, PositionMap, make_params
from hypothesis import given, settings
from hypothesis import strategies as st

HOST = 0
EDGE = 2**62
VisiblePairs = structure("visible_pairs")
RingProblem = structure("attention_backward_ring_problem")


def message():
    return abi.last_failure().message


def step(**changes):
    """The status of a step of the host family, of 4 rows and 4 keys; nothing is written if not OK."""
    x = np.ones((1, 2, 4, 8), np.float32)
    y = np.full(x.shape, 77, np.float32)
    params = make_params(x, x, x, y, flags=FIRST | LAST | CAUSAL)
    for name, value in changes.items():
        setattr(params, name, value)
    status = abi.library().baracuda_attention_step(HOST, ct.byref(params), None)
    assert (y == 77).all() if status != abi.OK else (y != 77).any(), status
    return status


# ---- Positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["head", "tail"])
@pytest.mark.parametrize("start", [-(2**63), -EDGE, EDGE + 1, 2**63 - 1])
@pytest.mark.parametrize("name", ["q_map", "k_map"])
def test_starts_of_both_halves_are_positions_even_where_no_row_is(name, start, half):
    one = PositionMap(0, 0, 1, 4 if half == "tail" else 0)
    setattr(one, half, start)
    assert step(**{name: one}) == abi.INVALID_ARGUMENT
    assert f"{name}.{half}: got {start}, must be above -2^62 and at most 2^62" in message()


def test_the_farthest_positions_see_each_other():
    """The first key is as far from the row as positions go; in the tail's place there is no row."""
    far = PositionMap(1 - EDGE, EDGE, 1, 4)
    assert step(q_map=PositionMap(EDGE - 4, 0, 1, 4), k_map=far) == abi.OK
    rows, keys = PositionMap(EDGE - 1, 0, 1, 1), PositionMap(1 - EDGE, 0, 1, 1)
    assert counted(rows, 1, keys, 1, flags=CAUSAL) == (1, 0, 0, 1)


@pytest.mark.parametrize("one", [PositionMap(5, 0, EDGE, 4), PositionMap(0, 5, 2**63 - 1, 0)])
def test_a_single_row_may_have_any_stride(one):
    assert step(q_map=one, query_len=1) == abi.OK
    assert step(q_map=one, query_len=2) == abi.INVALID_ARGUMENT
    assert "q_map: got positions beyond 2^62, must be between -2^62 and 2^62" in message()


@pytest.mark.parametrize(
    "arguments",
    [(7, 0, 1, 4), (-1, 0, 1, 4), (0, 1, 1, 4), (1, -1, 2, 4), (2, 0, 0, 4), (0, 0, -1, 4),
     (1, 0, 1, -1), (2, 1, 8, EDGE)],
)  # fmt: skip
def test_every_step_refuses_the_map_of_a_rank_that_there_is_not(arguments):
    found = abi.library().baracuda_layout_map(*arguments)
    assert found.stride == 0
    assert step(q_map=found) == abi.INVALID_ARGUMENT
    assert "q_map.stride: got 0, must be at least 1" in message()


@pytest.mark.parametrize("layout", [abi.CONTIGUOUS, abi.ZIGZAG, abi.STRIPED])
def test_the_maps_of_the_longest_sequence_are_legal(layout):
    ranks, rows = 2**20, EDGE // 2**20
    for rank in (0, ranks - 1):
        found = abi.library().baracuda_layout_map(layout, rank, ranks, rows)
        pairs = counted(found, rows, PositionMap(0, 0, 1, 1), 1, flags=CAUSAL)
        assert pairs is not None and sum(pairs[:2]) == rows, message()


# ---- Visible pairs ------------------------------------------------------------------------------


def counted(q_map, rows, k_map, keys, **fields):
    """(whole, cut, first_row, end_row) of baracuda_attention_visible_pairs; None if it refuses."""
    params = Params(struct_size=ct.sizeof(Params), element=ELEMENT["f32"], lse_element=ELEMENT["f32"],
                    batch=1, heads=1, kv_heads=1, head_dim=1, query_len=rows, key_len=keys,
                    q_map=q_map, k_map=k_map, **fields)  # fmt: skip
    pairs = VisiblePairs()
    status = abi.library().baracuda_attention_visible_pairs(ct.byref(params), ct.byref(pairs))
    return (pairs.whole, pairs.cut, pairs.first_row, pairs.end_row) if status == abi.OK else None


def positions(one, length):
    """The two runs of positions, as integers of any size."""
    split = min(one.split, length)
    return ([one.head + one.stride * i for i in range(split)],
            [one.tail + one.stride * i for i in range(length - split)])  # fmt: skip


def by_one(q_map, rows, k_map, keys, flags=0, window_left=0, window_right=0):
    """The same, from each pair of a row and a key."""

    def sees(row, key):
        right = 0 if flags else window_right
        is_late = key > row + right if flags or right else False
        return not is_late and not (window_left and key <= row - window_left)

    whole = cut = 0
    for some_rows in positions(q_map, rows):
        for some_keys in positions(k_map, keys):
            seen = sum(sees(row, key) for row in some_rows for key in some_keys)
            whole += seen if seen == len(some_rows) * len(some_keys) else 0
            cut += seen if seen < len(some_rows) * len(some_keys) else 0
    all_keys = list(chain(*positions(k_map, keys)))
    live = [i for i, row in enumerate(chain(*positions(q_map, rows)))
            if any(sees(row, key) for key in all_keys)]  # fmt: skip
    return whole, cut, *((live[0], live[-1] + 1) if live else (0, 0))


NEAR = st.integers(-3, 3)
PLACES = st.one_of(
    st.integers(-20, 20),
    st.integers(-EDGE, EDGE),
    *(NEAR.map(edge.__add__) for edge in (-EDGE, EDGE, -EDGE // 2, EDGE // 2)),
)
STRIDES = st.one_of(
    st.integers(1, 9), st.integers(1, 2**63 - 1), st.sampled_from([2**60, 2**61, EDGE, EDGE + 1])
)
WINDOWS = st.one_of(
    st.just(0), st.integers(1, 20), st.integers(1, 2**63 - 1), st.integers(2**63 - 4, 2**63 - 1),
    NEAR.map(EDGE.__add__),
)  # fmt: skip


@st.composite
def shards(draw):
    """A position map that steps take, and its number of rows."""
    rows = draw(st.integers(1, 7))
    split = draw(st.one_of(st.integers(0, rows + 1), st.just(2**63 - 1)))
    stride, head, tail = draw(STRIDES), draw(PLACES), draw(PLACES)
    one = PositionMap(head, tail, stride, split)
    runs = positions(one, rows)
    # Fewer, closer and later rows make most maps legal.
    if any(run and not -EDGE < run[0] <= run[-1] < EDGE for run in runs):
        one.stride = stride % 9 + 1
    if runs[0] and runs[1] and one.tail <= positions(one, rows)[0][-1]:
        one.head, one.tail = one.tail, one.head
    return one, rows


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(shards(), shards(), st.sampled_from([0, CAUSAL]), WINDOWS, WINDOWS)
def test_pairs_at_the_farthest_positions_and_windows(rows, keys, flags, left, right):
    mask = {"flags": flags, "window_left": left, "window_right": right}
    found = counted(*rows, *keys, **mask)
    if found is None:
        assert "_map" in message()
    else:
        assert found == by_one(*rows, *keys, **mask)


@pytest.mark.parametrize(
    ("q_map", "rows", "k_map", "keys", "mask"),
    [
        ((-99, -96, 3, 0), 4, (1, 2, 2, 0), 3,
         {"window_left": 2**63 - 2, "window_right": 2**63 - 1}),
        ((1 - EDGE, 1, 2**61, 2), 2, (-(2**31), 4611686016279904253, 658812288346769700, 7), 7,
         {"flags": CAUSAL}),
    ],
)  # fmt: skip
def test_pairs_that_were_counted_wrong(q_map, rows, k_map, keys, mask):
    shards = PositionMap(*q_map), rows, PositionMap(*k_map), keys
    assert counted(*shards, **mask) == by_one(*shards, **mask)


def test_pairs_need_memory_for_the_answer():
    params = Params(struct_size=ct.sizeof(Params))
    status = abi.library().baracuda_attention_visible_pairs(ct.byref(params), None)
    assert status == abi.INVALID_ARGUMENT and "pairs: got NULL, must be given" in message()


# ---- Extents and strides ------------------------------------------------------------------------


def set_field(struct, path, value):
    *parents, name = path.split(".")
    for parent in parents:
        struct = getattr(struct, parent)
    setattr(struct, name, value)


class Backward:
    """A backward call of one step on the host, of float32. `changes` are fields of its params."""

    def __init__(self, **sizes):
        x = draw("f32", 0, batch=2, query_len=8, dlse=True, **sizes)
        y, lse = forward(x)
        self.outputs = [np.full_like(a, 77) for a in (x.q, x.k, x.v)]
        dq, dk, dv = self.outputs
        self.steps = backward_abi.Steps(
            x, y, lse, kernel=HOST, kv_heads=x.k.shape[1], dq=dq, scale=0.5, causal=False,
            q_map=PositionMap(0, 0, 1, 8), scratch=np.empty(1 << 14),
        )  # fmt: skip
        self.steps.bind_keys(x.k, x.v, dk, dv, PositionMap(0, 0, 1, 8))
        self.params = self.steps.params
        self.params.step.flags = FIRST | LAST

    def run(self, **changes):
        """The status. A call that fails has written nothing."""
        for path, value in changes.items():
            set_field(self.params, path, value)
        for name in ("prepare", "step"):
            entry = getattr(self.steps.lib, f"baracuda_attention_backward_{name}")
            status = entry(HOST, ct.byref(self.params), None)
            if status != abi.OK:
                assert all((a == 77).all() for a in self.outputs)
                return status
        assert not any((a == 77).any() for a in self.outputs)
        return status


def test_a_backward_call_is_otherwise_legal():
    assert Backward().run() == abi.OK


@pytest.mark.parametrize(
    "extents",
    [{"batch": 2**32, "kv_heads": 2**32, "key_len": 1}, {"key_len": 2**63 - 1},
     {"key_len": 2**61 // 16}, {"batch": 2**40, "key_len": 2**40}],
)  # fmt: skip
def test_keys_without_rows_have_extents_whose_product_fits(extents):
    call = Backward()
    changes = {f"step.{name}": value for name, value in extents.items()}
    strides = {f"{name}_strides.{i}": 0 for name in ("dk", "dv") for i in ("batch", "head", "seq")}
    assert call.run(**changes, **strides, **{"step.heads": 0}) == abi.INVALID_ARGUMENT
    assert "batch, kv_heads, key_len, head_dim: got" in message()
    assert "must keep K below 2^63 bytes" in message()


FAR = [2**62, -(2**62), 2**61, -(2**63), 2**63 - 1]


@pytest.mark.parametrize("stride", FAR)
@pytest.mark.parametrize("dimension", ["batch", "head", "seq"])
@pytest.mark.parametrize("name", ["q", "k", "v", "y"])
def test_a_forward_steps_offsets_fit_in_63_bits(name, dimension, stride):
    x = np.ones((2, 2, 4, 8), np.float32)
    y = np.full(x.shape, 77, np.float32)
    params = make_params(x, x, x, y)
    set_field(params, f"{name}_strides.{dimension}", stride)
    status = abi.library().baracuda_attention_step(HOST, ct.byref(params), None)
    assert status == abi.INVALID_ARGUMENT and (y == 77).all()
    assert f"{name}: got batch, head and sequence strides of" in message()
    assert f"{stride}" in message() and "must keep all offsets below 2^63 bytes" in message()


@pytest.mark.parametrize("stride", FAR)
@pytest.mark.parametrize("dimension", ["batch", "head", "seq"])
@pytest.mark.parametrize(
    "name",
    ["step.q", "step.k", "step.v", "step.y", "dy", "dq", "dk", "dv", "lse", "dlse"],
)
def test_a_backward_calls_offsets_fit_in_63_bits(name, dimension, stride):
    assert Backward().run(**{f"{name}_strides.{dimension}": stride}) == abi.INVALID_ARGUMENT
    assert f"{name[-4:].split('.')[-1]}: got batch, head and sequence strides of" in message()


def test_offsets_are_those_of_all_dimensions_together():
    """The bytes of each dimension fit in 63 bits, those of all three do not."""
    x = np.ones((2, 2, 2, 8), np.float32)
    y = np.full(x.shape, 77, np.float32)
    params = make_params(x, x, x, y)
    params.k_strides = type(params.k_strides)(2**60, 2**60, 2**61 - 8)
    status = abi.library().baracuda_attention_step(HOST, ct.byref(params), None)
    assert status == abi.INVALID_ARGUMENT and (y == 77).all()


def test_the_stride_of_one_row_may_be_anything():
    x, y = np.ones((1, 1, 1, 8), np.float32), np.full((1, 1, 1, 8), 77, np.float32)
    params = make_params(x, x, x, y)
    for name in ("q", "k", "v", "y"):
        for dimension in ("batch", "head", "seq"):
            set_field(params, f"{name}_strides.{dimension}", 2**63 - 1)
    assert abi.library().baracuda_attention_step(HOST, ct.byref(params), None) == abi.OK
    assert (y == 1).all()


@pytest.mark.parametrize("dimension", ["batch", "head", "seq"])
def test_elements_of_an_output_lie_apart(dimension):
    x = np.ones((2, 2, 4, 8), np.float32)
    y = np.full(x.shape, 77, np.float32)
    params = make_params(x, x, x, y)
    set_field(params, f"k_strides.{dimension}", 0)
    assert abi.library().baracuda_attention_step(HOST, ct.byref(params), None) == abi.OK
    y[...] = 77
    set_field(params, f"y_strides.{dimension}", 0)
    status = abi.library().baracuda_attention_step(HOST, ct.byref(params), None)
    assert status == abi.INVALID_ARGUMENT and (y == 77).all()
    assert "y: got a" in message() and "stride of 0, must not be 0" in message()
    for name in ("dq", "dk", "dv"):
        assert Backward().run(**{f"{name}_strides.{dimension}": 0}) == abi.INVALID_ARGUMENT
        assert f"{name}: got a" in message() and "stride of 0, must not be 0" in message()


# ---- The backward's ring ------------------------------------------------------------------------


def check_of_ring(world_size, **changes):
    """The status of the check that a ring makes before it sends or starts anything."""
    call = Backward()
    problem = RingProblem(ct.sizeof(RingProblem), HOST, abi.ZIGZAG, call.params, 0)
    for path, value in changes.items():
        set_field(problem, path, value)
    entry = abi.library().baracuda_attention_backward_ring_program
    entry.restype = ct.POINTER(abi.Program)
    at = abi.Step(rank=0, world_size=world_size)
    return entry().contents.check(ct.addressof(problem), ct.byref(at))


@pytest.mark.parametrize(
    ("path", "value", "status", "text"),
    [
        ("call.kv_gradient_element", 9, abi.INVALID_ARGUMENT,
         "kv_gradient_element: got 9, must be element, 2, or the accumulator's type, 2"),
        ("call.dk", None, abi.INVALID_ARGUMENT, "dk: got NULL, must be given"),
        ("call.dv", None, abi.INVALID_ARGUMENT, "dv: got NULL, must be given"),
        ("call.dk", 2**20 + 1, abi.MISALIGNED, "dk: got address 0x100001, must be a multiple of 4"),
        ("call.dv", 2**20 + 2, abi.MISALIGNED, "dv: got address 0x100002, must be a multiple of 4"),
        ("call.dk_strides.seq", 0, abi.INVALID_ARGUMENT, "dk: got a sequence stride of 0"),
        ("call.dv_strides.head", 2**62, abi.INVALID_ARGUMENT, "dv: got batch, head and sequence"),
        ("call.reserved", 1, abi.UNSUPPORTED, "reserved: got a value, must be 0"),
        ("call.step.lse_element", 3, abi.INVALID_ARGUMENT, "lse_element: got 3, must be"),
        ("call.step.kv_heads", 0, abi.INVALID_ARGUMENT, "kv_heads: got 0, must be at least 1"),
        ("kernel", 9, abi.INVALID_ARGUMENT, "kernel: got 9, must be a baracuda_attention_kernel"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_ring_looks_at_what_its_last_sum_is_written_to(world_size, path, value, status, text):
    assert check_of_ring(world_size) == abi.OK
    assert check_of_ring(world_size, **{path: value}) == status
    assert text in message()


@pytest.mark.parametrize("extent", ["batch", "key_len"])
def test_a_ring_without_keys_needs_no_gradients_of_them(extent):
    no_keys = {f"call.step.{extent}": 0, "call.dk": None, "call.dv": None}
    assert check_of_ring(2, **no_keys) == abi.OK


# ---- What a family refuses ----------------------------------------------------------------------


def problem(**changes):
    """Params of a problem that every family serves."""
    given = Params(struct_size=ct.sizeof(Params), flags=FIRST | LAST, element=ELEMENT["bf16"],
                   lse_element=ELEMENT["f32"], batch=1, heads=4, kv_heads=2, query_len=64,
                   key_len=64, head_dim=128, scale=0.1)  # fmt: skip
    for name, value in changes.items():
        setattr(given, name, value)
    return given


def asked(entry, kernel, given, size=256, *, null=False):
    """(status, reason). Bytes of the reason's memory that are not written stay 0x55."""
    reason = ct.create_string_buffer(b"\x55" * 256, 256)
    function = getattr(abi.library(), f"baracuda_attention_{entry}")
    function.argtypes = [ct.c_int32, ct.c_void_p, ct.c_void_p, ct.c_int64]
    pointer = None if given is None else ct.addressof(given)
    status = function(kernel, pointer, None if null else ct.addressof(reason), size)
    return status, reason.raw


UNTOUCHED = b"\x55" * 256
ENTRIES = pytest.mark.parametrize("entry", ["refusal", "backward_refusal"])
KERNELS = pytest.mark.parametrize("kernel", range(4))


@ENTRIES
@KERNELS
def test_a_refusal_needs_the_struct_and_memory_for_the_reason(entry, kernel):
    assert asked(entry, kernel, problem()) == (abi.OK, b"\0" + UNTOUCHED[1:])
    assert asked(entry, kernel, problem(), 0, null=True)[0] == abi.OK
    for wrong, text in (
        ({"given": None}, "params: got NULL, must be given"),
        ({"given": problem(struct_size=8)}, "params.struct_size: got 8, must be"),
        ({"size": -1}, "size: got -1, must be at least 0"),
        ({"size": -(2**63)}, "size: got -9223372036854775808, must be at least 0"),
        ({"null": True}, "reason: got NULL, must be given for a size of 256"),
    ):
        call = {"given": problem(), **wrong}
        assert asked(entry, kernel, **call) == (abi.INVALID_ARGUMENT, UNTOUCHED)
        assert text in message()


@ENTRIES
@KERNELS
@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"kv_heads": 0}, abi.INVALID_ARGUMENT, "kv_heads: got 0, must be at least 1"),
        ({"heads": 3}, abi.INVALID_ARGUMENT, "heads: got 3, must be a multiple of kv_heads, 2"),
        ({"flags": 256}, abi.INVALID_ARGUMENT, "flags: got 0x100, must be a combination"),
        ({"lse_element": 9}, abi.INVALID_ARGUMENT, "lse_element: got 9, must be BARACUDA_F32"),
        ({"batch": -1}, abi.INVALID_ARGUMENT, "batch: got -1, must be at least 0"),
        ({"softcap": 30.0}, abi.UNSUPPORTED, "softcap: got a value, must be 0 (reserved)"),
    ],
)
def test_what_every_family_refuses_is_a_refusal(entry, kernel, changes, status, text):
    found, reason = asked(entry, kernel, problem(**changes))
    assert found == status and message().startswith(text)
    assert reason.split(b"\0")[0].decode() == message()
    found, reason = asked(entry, kernel, problem(**changes), 8)
    assert found == status and reason == text[:7].encode() + b"\0" + UNTOUCHED[8:]


def test_facts_of_a_family_need_memory():
    assert abi.library().baracuda_attention_family_info(HOST, None) == abi.INVALID_ARGUMENT
    assert "info: got NULL, must be given" in message()
