"""The backward's C ABI: several steps at the positions of every layout, its refusals."""

import ctypes as ct

import numpy as np
import pytest
from helpers import backward_abi as abi
from helpers import ring_abi
from helpers.gradients import accumulator, draw, forward
from helpers.host_abi import FIRST, LAST, PositionMap

import baracuda_kernels as bk
from baracuda_kernels.reference import attention_backward
from baracuda_kernels.testing import NUMPY_DTYPES, error_of

LAYOUTS = {"contiguous": 0, "zigzag": 1, "striped": 2}
HOST = 0
needs_cuda_build = pytest.mark.skipif(
    not bk._build_info()["cuda_built"], reason="capability: CUDA kernels in the build"
)


def empty_like(dtype):
    kinds = {"operand": NUMPY_DTYPES[dtype], "wide": accumulator(dtype), "f64": np.float64}
    return lambda shape, like: np.full(shape, np.nan, kinds[like])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
def test_steps_at_the_positions_of_a_ring(dtype, layout):
    """dq over the steps, dk and dv of each step's chunk: the gradients of the whole sequence."""
    for world_size, length, causal in ((2, 70, True), (3, 45, True), (4, 40, False), (5, 30, True)):
        x = draw(dtype, world_size, heads=2, kv_heads=1, query_len=world_size * length, head_dim=24,
                 dlse=True)
        # The whole sequence in one call is the same call for every layout.
        y, lse = forward(x, is_causal=causal)
        got = abi.ring_gradients(x, y, lse, world_size, LAYOUTS[layout], kernel=HOST, causal=causal,
                                 empty=empty_like(dtype), place=np.ascontiguousarray)
        exact = attention_backward(*x[:4], dlse=x.dlse, is_causal=causal)
        bound = {"f32": 1e-6, "f64": 1e-13, "bf16": 3e-3}[dtype]
        for name, one, truth in zip(("dq", "dk", "dv"), got, exact, strict=True):
            assert error_of(one, truth)["relative"] < bound, (name, world_size)


def one_step(**changes):
    """The status of a call of one step whose params have been changed."""
    x = draw("bf16", 0, query_len=8)
    y, lse = forward(x)
    dq, dk, dv = (np.full_like(a, np.nan) for a in (x.q, x.k, x.v))
    call = abi.Steps(x, y, lse, kernel=HOST, kv_heads=2, dq=dq, scale=0.5, causal=False,
                     q_map=PositionMap(0, 0, 1, 8), scratch=np.empty(1 << 14))
    call.bind_keys(x.k, x.v, dk, dv, PositionMap(0, 0, 1, 8))
    call.params.step.flags = FIRST | LAST
    for name, value in changes.items():
        of_step = hasattr(call.params.step, name) and name != "struct_size"
        setattr(call.params.step if of_step else call.params, name, value)
    for entry in (call.lib.baracuda_attention_backward_prepare,
                  call.lib.baracuda_attention_backward_step):
        status = entry(HOST, ct.byref(call.params), None)
        if status != ring_abi.OK:
            return status
    return status


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"struct_size": 8}, "struct_size: got 8, must be"),
        ({"lse_element": 1}, "lse_element: got 1, must be 2, the accumulator's type"),
        ({"kv_gradient_element": 0}, "kv_gradient_element: got 0, must be element, 1, or"),
        ({"reserved": 1}, "reserved: got a value"),
        ({"dy": None}, "dy: got NULL"),
        ({"dq": None}, "dq: got NULL"),
        ({"dk": 2**20 + 1}, "dk: got address"),
        ({"head_dim": 2000}, "head_dim: got 2000, must be 1 to 1024"),
        ({"window_left": 3}, "window_left: got 3, must be 0"),
        ({"heads": 3}, "heads: got 3, must be a multiple of kv_heads, 2"),
    ],
    ids=str,
)
def test_refusals(changes, message):
    assert one_step() == ring_abi.OK
    assert one_step(**changes) != ring_abi.OK
    assert message in str(ring_abi.last_failure())


def test_what_each_family_takes_and_whether_its_sums_are_ordered():
    lib = abi.library()
    assert [lib.baracuda_attention_backward_elements(n) for n in range(5)] == [15, 15, 3, 3, 0]
    assert [lib.baracuda_attention_backward_ordered(n) for n in range(4)] == [1, 1, 0, 0]


@pytest.mark.parametrize("first", [2, 3])
def test_sm80_and_sm90a_have_a_second_backward_whose_sums_have_an_order(first):
    lib = abi.library()
    assert [lib.baracuda_attention_backward_second(n) for n in (0, 1, 9)] == [-1] * 3
    second = lib.baracuda_attention_backward_second(first)
    assert second == 256 + first
    assert lib.baracuda_attention_backward_ordered(second) == 1
    assert lib.baracuda_attention_backward_elements(second) == 3
    assert lib.baracuda_attention_backward_second(second) == -1
    p = abi.BackwardParams(struct_size=ct.sizeof(abi.BackwardParams))
    assert lib.baracuda_attention_backward_step(260, ct.byref(p), None) != ring_abi.OK
    assert "kernel: got 260, must be a baracuda_attention_kernel, 0 to 3, or a " \
        "baracuda_attention_backward_kernel, 258 or 259" in str(ring_abi.last_failure())


@needs_cuda_build
@pytest.mark.parametrize("kernel", [3, 259])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": 2**20 + 8}, "q: got address"), ({"dy": 2**20 + 8}, "dy: got address"),
        ({"dv": 2**20 + 4}, "dv: got address"), ({"dq": 2**20 + 8}, "dq: got address"),
        ({"y_strides": abi.Strides(0, 0, 68)}, "y: got a sequence stride of 68 elements"),
        ({"dy_strides": abi.Strides(0, 0, 68)}, "dy: got a sequence stride of 68 elements"),
        ({"q_strides": abi.Strides(0, 0, -64)}, "q: got a sequence stride of -64 elements"),
        ({"dk_strides": abi.Strides(0, 66, 64)}, "dk: got a head stride of 66 elements"),
        ({"head_dim": 192}, "head_dim: got 192, must be one of 64, 128, 256"),
        ({"scale": -1.0}, "scale: got -1.0, must be > 0"), ({"scale": 1e-30}, "scale: got 1e-30, must be at least 2**-80"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_sm90a_needs_is_checked_before_anything_is_launched(changes, message, kernel):
    refused_before_launch(kernel, changes, message)


@needs_cuda_build
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 2**20 + 8}, "k: got address"), ({"dy": 2**20 + 8}, "dy: got address"),
        ({"dk": 2**20 + 4}, "dk: got address"), ({"y_strides": abi.Strides(0, 0, 68)},
                                                  "y: got a sequence stride of 68 elements"),
        ({"v_strides": abi.Strides(0, 66, 64)}, "v: got a head stride of 66 elements"),
        ({"head_dim": 80}, "head_dim: got 80, must be one of 64, 96, 128, 192, 256"),
        ({"scale": 0.0}, "scale: got 0.0, must be > 0"), ({"element": 2, "kv_gradient_element": 2},
                                                  "element: got F32, must be one of F16, BF16"),
        ({"key_len": 2**30, "batch": 64, "k_strides": abi.Strides(0, 0, 64)},
         "batch, kv_heads, key_len: got"),
        ({"query_len": 2**30 + 1}, f"query_len: got {2**30 + 1}, must be at most 2**30 in one step"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("kernel", [2, 258])
def test_what_sm80_needs_is_checked_before_anything_is_launched(changes, message, kernel):
    refused_before_launch(kernel, changes, message)


def refused_before_launch(kernel, changes, message):
    """Pointers to nothing: a launch would not survive them."""
    lib = abi.library()
    p = abi.BackwardParams(struct_size=ct.sizeof(abi.BackwardParams))
    s = p.step
    s.struct_size = ct.sizeof(s)
    s.element = p.kv_gradient_element = abi.ELEMENT["bf16"]
    s.lse_element, s.flags = abi.ELEMENT["f32"], abi.FIRST | abi.LAST
    s.batch, s.heads, s.kv_heads, s.query_len, s.key_len, s.head_dim = 1, 2, 2, 8, 8, 64
    s.scale = 0.125
    for holder, names in ((s, ("q", "k", "v", "y", "lse", "state")), (p, ("dy", "dq", "dk", "dv"))):
        for name in names:
            setattr(holder, name, 2**20)
            if name not in ("lse", "state"):
                setattr(holder, name + "_strides", abi.Strides(1024, 512, 64))
    for name, value in changes.items():
        setattr(s if hasattr(s, name) else p, name, value)
    entry = lib.baracuda_attention_backward_prepare if "y" in next(iter(changes)) \
        else lib.baracuda_attention_backward_step
    assert entry(kernel, ct.byref(p), None) != ring_abi.OK
    assert message in str(ring_abi.last_failure())


def test_a_call_allocates_nothing():
    """Counted by a preloaded malloc, on the second call, of one pass over the heads and of two."""
    body = """
    count = ct.CDLL(None).count_malloc
    count.restype = ct.c_int64
    import numpy as np
    from helpers import backward_abi
    from helpers.gradients import draw, forward
    from helpers.host_abi import FIRST, LAST, PositionMap
    for heads in (1, 8):
        x = draw("bf16", 0, heads=heads, query_len=100, key_len=150, head_dim=40)
        y, lse = forward(x)
        dq, dk, dv = (np.full_like(a, np.nan) for a in (x.q, x.k, x.v))
        call = backward_abi.Steps(x, y, lse, kernel=0, kv_heads=heads, dq=dq, scale=0.5,
                                  causal=True, q_map=PositionMap(0, 0, 1, 100),
                                  scratch=np.empty(heads * 100 * 42))
        call.bind_keys(x.k, x.v, dk, dv, PositionMap(0, 0, 1, 150))
        call.params.step.flags |= FIRST | LAST
        params = ct.byref(call.params)
        prepare = call.lib.baracuda_attention_backward_prepare
        step = call.lib.baracuda_attention_backward_step
        assert prepare(0, params, None) == step(0, params, None) == abi.OK
        before = count()
        assert before > 0
        statuses = prepare(0, params, None), step(0, params, None)
        allocated = count() - before
        before = count()
        prepare(9, params, None), step(9, params, None)
        cost_of_ctypes = count() - before
        assert statuses == (abi.OK, abi.OK) and np.isfinite(dq.astype(np.float32)).all()
        assert allocated <= cost_of_ctypes, (heads, allocated, cost_of_ctypes)
    """
    ring_abi.in_new_process(body, preload=ring_abi.build_helper("count_malloc.cpp", "-ldl"))


def test_without_rows_nothing_else_is_read():
    """dk and dv are zeros, and the other operands may be null."""
    x = draw("f32", 0, query_len=0, key_len=150)
    dk, dv = (np.full_like(a, np.nan) for a in (x.k, x.v))
    call = abi.Steps(x, x.q, np.zeros((1, 2, 0), np.float32), kernel=HOST, kv_heads=2, dq=x.q,
                     scale=0.5, causal=False, q_map=PositionMap(0, 0, 1, 0))
    call.bind_keys(x.k, x.v, dk, dv, PositionMap(0, 0, 1, 150))
    p, s = call.params, call.params.step
    s.q = s.k = s.v = s.y = s.lse = s.state = p.dy = p.dq = None
    call.prepare()
    call.step(first=True, last=True)
    assert (dk == 0).all() and (dv == 0).all()
