"""interop.jax on eight virtual CPU devices: the answer, the compiled program, the refusals."""

import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from helpers.pages import run_page

import baracuda_kernels as bk
from baracuda_kernels.testing import assert_close, attention, numpy_qkv

pytestmark = pytest.mark.framework("jax")

P = 8
LAYOUTS = ["contiguous", "zigzag", "striped"]
SPEC = (None, None, "ring", None)


@pytest.fixture(scope="module")
def ring(jax):
    """interop.jax, with the mesh that the tests use as ``ring.mesh``."""
    from baracuda_kernels.interop import jax as adapter

    adapter.mesh = jax.make_mesh((P,), ("ring",))
    yield adapter
    del adapter.mesh


def draw(dtype="f32", seed=0, rows=16, head_dim=32, batch=2, heads=4, kv_heads=2):
    return numpy_qkv(
        "normal",
        dtype,
        seed,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        query_len=P * rows,
        head_dim=head_dim,
    )


def sharded(jax, ring, layout="contiguous", spec=SPEC, **options):
    """The jitted function of q, k, v on whole arrays in the layout's order -> (y, lse)."""
    specs = jax.sharding.PartitionSpec(*spec)
    rows = jax.sharding.PartitionSpec(*SPEC[:3])
    return jax.jit(
        jax.shard_map(
            lambda q, k, v: ring.ring_attention(
                q, k, v, "ring", sequence_layout=layout, return_lse=True, **options
            ),
            mesh=ring.mesh,
            in_specs=specs,
            out_specs=(specs, rows),
        )
    )


def put(jax, ring, arrays, order, dim=2):
    spec = jax.sharding.PartitionSpec(*("ring" if i == dim else None for i in range(4)))
    sharding = jax.NamedSharding(ring.mesh, spec)
    return [jax.device_put(np.take(x, order, dim), sharding) for x in arrays]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_give_the_single_device_answer(jax, ring, layout, is_causal, dtype):
    qkv = draw(dtype)
    order = ring.sequence_order(P * 16, P, layout)
    y, lse = sharded(jax, ring, layout, is_causal=is_causal)(*put(jax, ring, qkv, order))
    back = np.argsort(order)
    exact = attention(*qkv, is_causal=is_causal)
    assert_close(
        "host", dtype, np.asarray(y)[:, :, back], exact[0], np.asarray(lse)[:, :, back], exact[1]
    )


def test_uneven_rows_of_queries_and_keys(jax, ring):
    """Q and K of different lengths, odd under zigzag, one K/V head for all."""
    q = draw(rows=7, heads=6, kv_heads=1, head_dim=48, seed=1)[0]
    _, k, v = draw(rows=5, heads=6, kv_heads=1, head_dim=48, seed=2)
    orders = [ring.sequence_order(P * rows, P, "zigzag") for rows in (7, 5)]
    arrays = put(jax, ring, [q], orders[0]) + put(jax, ring, [k, v], orders[1])
    y, lse = sharded(jax, ring, "zigzag", is_causal=True, scale=-0.3)(*arrays)
    exact = attention(q, k, v, is_causal=True, scale=-0.3)
    back = np.argsort(orders[0])
    assert_close(
        "host", "f32", np.asarray(y)[:, :, back], exact[0], np.asarray(lse)[:, :, back], exact[1]
    )


def test_bshd_and_f64(jax, ring):
    with jax.enable_x64(True):
        qkv = draw("f64", seed=3)
        order = ring.sequence_order(P * 16, P, "striped")
        arrays = put(jax, ring, [x.swapaxes(1, 2) for x in qkv], order, dim=1)
        y, lse = sharded(
            jax,
            ring,
            "striped",
            spec=(None, "ring", None, None),
            is_causal=True,
            tensor_layout="bshd",
        )(*arrays)
        exact = attention(*qkv, is_causal=True)
        back = np.argsort(order)
        assert y.shape == (2, P * 16, 4, 32) and y.dtype == np.float64
        y = np.asarray(y).swapaxes(1, 2)[:, :, back]
        assert_close("host", "f64", y, exact[0], np.asarray(lse)[:, :, back], exact[1])


def test_a_mesh_of_two_axes(jax, ring):
    """The batch over one axis, the sequence over the other; queries alike on the first."""
    mesh = jax.make_mesh((2, 4), ("data", "ring"))
    q, k, v = draw(seed=4)
    q = np.repeat(q[:1], 1, 0)
    spec = jax.sharding.PartitionSpec
    whole, split = spec(None, None, "ring"), spec("data", None, "ring")

    def local(q, k, v):
        return ring.ring_attention(q, k, v, "ring", is_causal=True)

    arrays = [
        jax.device_put(x, jax.NamedSharding(mesh, s))
        for x, s in ((q, whole), (k, split), (v, split))
    ]
    y = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(whole, split, split), out_specs=split))(
        *arrays
    )
    exact = [attention(q, k[i : i + 1], v[i : i + 1], is_causal=True)[0] for i in range(2)]
    assert bk.reference.error_of(np.asarray(y), np.concatenate(exact))["relative"] < 2e-6


def test_the_state_stays_in_one_buffer(jax, ring):
    """FIRST, six MIDDLE that alias the state, LAST; and 2 x 7 permutations, nothing copied."""
    lowered = sharded(jax, ring, is_causal=True).lower(*put(jax, ring, draw(), np.arange(P * 16)))
    program = lowered.compile().as_text()
    calls = [line for line in program.splitlines() if " custom-call(" in line]
    assert len(calls) == P
    aliased = ["output_to_operand_aliasing={{}: (4, {})}" in line for line in calls]
    assert aliased == [False] + [True] * (P - 2) + [False]
    state = re.search(r"= (f32\[1,1,1,\d+\])", calls[0])[1]
    copies = [line for line in program.splitlines() if re.search(r" copy(-start)?\(", line)]
    assert not any(state in line for line in copies), copies
    assert len(re.findall(r" collective-permute(?:-start)?\(", program)) == 2 * (P - 1)


def test_the_steps_alone(jax, ring):
    """attention_step, with another rotation, gives what the ring gives."""
    q, k, v = draw(seed=5)
    parts = [[x[:, :, r::2] for r in range(2)] for x in (q, k, v)]

    @jax.jit
    def second_rank(q, ks, vs, rank):
        options = {"rank": rank, "world_size": 2, "is_causal": True, "sequence_layout": "striped"}
        state = ring.attention_step(q, ks[0], vs[0], last=False, origin=0, **options)
        return ring.attention_step(q, ks[1], vs[1], state, origin=1, **options)

    y, lse = second_rank(parts[0][1], parts[1], parts[2], 1)
    exact = attention(q, k, v, is_causal=True)
    assert_close(
        "host", "f32", np.asarray(y), exact[0][:, :, 1::2], np.asarray(lse), exact[1][:, :, 1::2]
    )


def test_rows_that_see_nothing(jax, ring):
    """A single step on a later chunk: y = 0 and lse = -inf."""
    q, k, v = draw(seed=6)
    y, lse = ring.attention_step(q, k, v, rank=0, origin=1, world_size=2, is_causal=True)
    assert not np.asarray(y).any() and np.isneginf(np.asarray(lse)).all()


@pytest.mark.parametrize("name", ["rank", "origin"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_rank_is_one_of_the_ring(jax, ring, name, is_causal):
    jnp = jax.numpy
    q, k, v = draw(seed=8)
    options = {"world_size": 2, "is_causal": is_causal}
    expected = ring.attention_step(q, k, v, **options, **{name: 1})
    for one in (np.int64(1), np.uint8(1), np.array(1), jnp.int32(1), jnp.uint8(1)):
        got = ring.attention_step(q, k, v, **options, **{name: one})
        assert all((a == b).all() for a, b in zip(got, expected, strict=True)), one
    wrong = (2, -1, np.int64(7), np.int32(-1), np.array(2), jnp.int32(9), jnp.int32(-1), True, 1.5,
             np.float32(1), jnp.float32(1), jnp.array(True), np.array([1]), jnp.array([1]), "a",
             None)  # fmt: skip
    for one in wrong:
        with pytest.raises(
            bk.InvalidProblemError, match=f"{name}: got .*, must be an integer from 0 to 1"
        ):
            ring.attention_step(q, k, v, **options, **{name: one})


@pytest.mark.parametrize("name", ["rank", "origin"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_traced_rank_is_one_integer(jax, ring, name, is_causal):
    qkv = draw(seed=8)

    def step(who):
        return ring.attention_step(*qkv, world_size=2, is_causal=is_causal, **{name: who})

    for wrong in (1.5, True, np.array([1])):
        with pytest.raises(
            bk.InvalidProblemError, match=f"{name}: got .*Tracer.*, must be an integer from 0 to 1"
        ):
            jax.jit(step)(wrong)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": "bf16"}, "k: got dtype bfloat16, must be q's, float32"),
        ({"q": "int", "k": "int", "v": "int"}, "dtype int32"),
        ({"v": "rows"}, "v: got shape"),
        ({"k": "dim", "v": "dim"}, "head_dim of q"),
        ({"k": "heads", "v": "heads"}, "num_kv_heads"),
        ({"q": "flat"}, "q: got shape"),
        ({"q": "list"}, "q: got builtins.list, must be a jax.Array"),
        ({"q": "swapped"}, "q: got dtype >f4, must be in this machine's byte order"),
        ({"v": "masked"}, "v: got a masked array, must be an array without a mask"),
        ({"k": "objects"}, "k: got dtype object, must be one of"),
        ({"tensor_layout": ["bhsd"]}, "tensor_layout: got ['bhsd'], must be 'bhsd' or 'bshd'"),
        ({"tensor_layout": "sbhd"}, "tensor_layout: got 'sbhd'"),
        ({"sequence_layout": "spiral"}, "sequence_layout: got 'spiral'"),
        ({"scale": float("nan")}, "scale: got nan"),
        ({"is_causal": 1}, "is_causal: got 1"),
        ({"sm_margin": -1}, "sm_margin: got -1"),
        ({"world_size": 0}, "world_size: got 0"),
        ({"world_size": 2**31, "is_causal": True}, "world_size: got 2147483648, must be an integer"),
        ({"sm_margin": 2**70}, "sm_margin: got 1180591620717411303424, must be an integer from 0"),
        ({"last": "no"}, "last: got 'no', must be a bool"),
        ({"rank": 2, "world_size": 2, "is_causal": True}, "rank: got 2, must be an integer from 0"),
        ({"state": "other", "last": True}, "state: got"),
    ],
)
def test_bad_input_is_a_typed_error(jax, ring, change, message):
    change = dict(change)
    q, k, v = draw(seed=7)
    kinds = {
        "bf16": lambda x: jax.numpy.asarray(x, "bfloat16"),
        "int": lambda x: x.astype("int32"),
        "rows": lambda x: x[:, :, 1:],
        "dim": lambda x: x[..., 1:],
        "flat": lambda x: x[0],
        "heads": lambda x: np.concatenate([x, x[:, :1]], 1),
        "list": lambda x: x.tolist(),
        "swapped": lambda x: x.astype(">f4"),
        "masked": lambda x: np.ma.masked_array(x, mask=x > 0),
        "objects": lambda x: x.astype(object),
        "other": lambda x: x,
    }
    given = {"q": q, "k": k, "v": v}
    for name in ("q", "k", "v", "state"):
        if name in change:
            given[name] = kinds[change.pop(name)](given.get(name, q))
    with pytest.raises(bk.InvalidProblemError, match=re.escape(message)):
        ring.attention_step(**given, **change)


def test_debugging_without_jit(jax, ring):
    """A step alone is compiled even if jit is off; the search for NaN names it, and ends."""
    q, k, v = draw(seed=9)
    expected = ring.attention_step(q, k, v)
    with jax.disable_jit():
        got = ring.attention_step(q, k, v)
    assert all((a == b).all() for a, b in zip(got, expected, strict=True))
    huge = np.full_like(q, 3e38)
    with (
        jax.debug_nans(True),
        pytest.raises(FloatingPointError, match="invalid value .* in baracuda_attention_step"),
    ):
        ring.attention_step(huge, -huge[:, :2], v)


def test_devices_and_shards_are_jax_to_check(jax, ring):
    """JAX refuses arrays on different devices and a sequence that P does not divide."""
    q, k, v = draw(seed=8)
    here, there = jax.devices()[:2]
    with pytest.raises(ValueError, match="incompatible devices"):
        ring.attention_step(jax.device_put(q, here), jax.device_put(k, there), v)
    uneven = [x[:, :, :-1] for x in (q, k, v)]
    with pytest.raises(ValueError, match="divisible"):
        sharded(jax, ring)(*uneven)
    with pytest.raises(bk.InvalidProblemError, match="got 127 rows, must be a multiple of the 8"):
        ring.sequence_order(P * 16 - 1, P, "zigzag")


def test_a_gradient_that_does_not_go_through_it(jax, ring):
    q, k, v = draw()
    weight = jax.grad(lambda w: (w * ring.attention_step(q, k, v)[0]).sum())(2.0)
    assert np.isfinite(weight)


def test_a_problem_that_no_kernel_takes(jax, ring):
    q = np.zeros((1, 1, 8, 1025), np.float32)
    with pytest.raises(bk.UnsupportedError, match="head_dim"):
        jax.jit(ring.attention_step)(q, q, q)


def test_platforms_without_kernels(jax, ring):
    """Compiling ahead for another platform: CUDA without a GPU, and one with no kernels at all."""
    q, k, v = draw()
    trace = jax.jit(ring.attention_step).trace(q, k, v)
    with pytest.raises(bk.UnsupportedError, match="compiles for tpu"):
        trace.lower(lowering_platforms=("tpu",))
    if bk._machine.why_no_gpu():
        with pytest.raises(bk.UnsupportedError, match="compiles for CUDA, but"):
            trace.lower(lowering_platforms=("cuda",))


def test_a_failing_kernel_is_an_error_with_its_message(jax, ring):
    """An error inside the custom call is raised as XLA's error."""
    shapes = [
        jax.ShapeDtypeStruct((2, 4, 16, 32), np.float32),
        jax.ShapeDtypeStruct((2, 4, 16, 1), np.float32),
    ]
    call = jax.ffi.ffi_call("baracuda_attention_step", shapes)
    x = np.zeros((2, 4, 16, 32), np.float32)
    options = {
        name: np.int64(value)
        for name, value in {
            "first": 1,
            "last": 1,
            "causal": 0,
            "kernel": 9,
            "sequence_dim": 2,
            "sm_margin": 0,
            "interruptible": 1,
        }.items()
    }
    with pytest.raises(jax.errors.JaxRuntimeError, match="kernel: got 9, must be a"):
        jax.block_until_ready(call(x, x, x, scale=np.float64(1), **options))
    with pytest.raises(jax.errors.JaxRuntimeError, match="attribute scale: got none"):
        jax.block_until_ready(call(x, x, x, scale=np.int64(2), **options))
    with pytest.raises(jax.errors.JaxRuntimeError, match="operand 2 .v.: got none"):
        jax.block_until_ready(call(x, x, scale=np.float64(1), **{**options, "kernel": np.int64(0)}))


def test_a_jaxlib_that_refuses_the_handlers(jax, ring, monkeypatch):
    from baracuda_kernels.interop.jax import _lowering

    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("incompatible API version 1.0")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    with pytest.raises(bk.UnsupportedError, match="incompatible API version 1.0"):
        _lowering.register_targets()


def test_the_page_runs_as_written(tmp_path):
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    run_page("jax.md", tmp_path, environment=environment)


@pytest.mark.parametrize("ranks", [1, P])
def test_ctrl_c_ends_a_run(jax, ring, ranks):
    """XLA's threads compute while this one waits in C++: its error ends the wait, then the signal's."""
    x = np.ones((1, 4, P * 3072, 64), np.float32)  # some ten seconds
    if ranks == 1:
        call, arrays = jax.jit(lambda q, k, v: ring.attention_step(q, k, v)), [x] * 3
    else:
        call, arrays = sharded(jax, ring), put(jax, ring, [x] * 3, np.arange(x.shape[2]))
    call.lower(*arrays).compile()
    for _ in range(2):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        raised = []
        try:
            try:
                jax.block_until_ready(call(*arrays))
            except jax.errors.JaxRuntimeError as error:
                assert "Ctrl-C ended the run" in str(error)
                for _ in range(100):
                    time.sleep(0.001)
        except KeyboardInterrupt as error:
            raised.append(error)
        timer.join()
        assert time.monotonic() - start < 0.3 + 1.5
        assert len(raised) == 1
    # No later call waits for the interrupted one, and its result is right.
    test_eight_devices_give_the_single_device_answer(jax, ring, "zigzag", True, "f32")
