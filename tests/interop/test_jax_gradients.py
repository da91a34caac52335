"""Gradients of interop.jax on virtual CPU devices: against float64, by hand, and what is refused."""

import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from helpers.gradients import draw, errors

import baracuda_kernels as bk
from baracuda_kernels.testing import assert_gradients, attention_backward

pytestmark = pytest.mark.framework("jax")

P = 8
LAYOUTS = ["contiguous", "zigzag", "striped"]
SHAPE = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 32}


@pytest.fixture(scope="module")
def ring(jax):
    from baracuda_kernels.interop import jax as adapter

    return adapter


@pytest.fixture(scope="module")
def small(hand):
    """A problem for rings of two, and its mesh."""
    mesh = hand.mesh_of(2)
    x = draw("f32", 9, query_len=24, **SHAPE)
    return mesh, x, hand.on_mesh(mesh, x[:3])


def hold(dtype, x, got, **options):
    exact = attention_backward(*x[:4], dlse=x.dlse, **options)
    # Early rows under a causal mask see few keys: their softmax is peaked.
    assert_gradients("host", dtype, got, exact, peaked=options.get("is_causal", False))


def bits(arrays):
    return [np.asarray(a).tobytes() for a in arrays]


@pytest.mark.parametrize(
    ("dtype", "layout", "is_causal"),
    [("f32", layout, causal) for layout in LAYOUTS for causal in (False, True)]
    + [("bf16", "zigzag", True), ("f16", "striped", True), ("bf16", "contiguous", False)],
)
def test_eight_devices_give_the_single_device_gradients(hand, layout, is_causal, dtype):
    """The errors equal those of one device to 2 %: sums over devices lose nothing."""
    x = draw(dtype, 0, query_len=P * 16, dlse=True, **SHAPE)
    got = hand.ring_gradients(hand.mesh_of(P), x, layout, is_causal=is_causal)
    hold(dtype, x, got, is_causal=is_causal)
    if dtype != "f32":
        exact = attention_backward(*x[:4], dlse=x.dlse, is_causal=is_causal)
        alone = hand.ring_gradients(hand.mesh_of(1), x, "contiguous", is_causal=is_causal)
        ours, theirs = errors(got, exact), errors(alone, exact)
        assert all(ours[name] <= 1.02 * theirs[name] for name in ours), (ours, theirs)


def test_float64(jax, hand):
    """With the gradient of lse, too, which is float64 then."""
    with jax.enable_x64(True):
        x = draw("f64", 1, query_len=4 * 15, dlse=True, **SHAPE)
        hold("f64", x, hand.ring_gradients(hand.mesh_of(4), x, "zigzag", is_causal=True),
             is_causal=True)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_sums_is_the_schedules(hand, layout):
    """Bit for bit what one device makes of the shares: own + ((1st + 2nd) + 3rd), rounded once."""
    x = draw("bf16", 2, query_len=4 * 12, dlse=True, **SHAPE)
    by_hand = hand.schedule_gradients(x, 4, layout, is_causal=True)
    assert bits(hand.ring_gradients(hand.mesh_of(4), x, layout, is_causal=True)) == bits(by_hand)


def test_other_lengths_of_keys_one_head_and_bshd(jax, ring, hand):
    x = draw("f32", 3, batch=1, heads=6, kv_heads=1, head_dim=20, query_len=28, key_len=20)
    spec = jax.sharding.PartitionSpec(None, "ring")
    mesh = hand.mesh_of(4)

    def local(q, k, v):
        return ring.ring_attention(q, k, v, "ring", scale=-0.3, is_causal=True,
                                   tensor_layout="bshd", sequence_layout="zigzag")  # fmt: skip

    f = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)
    orders = [ring.sequence_order(n, 4, "zigzag") for n in (28, 20, 20, 28)]
    turned = [a[:, :, order].swapaxes(1, 2) for a, order in zip(x[:4], orders, strict=True)]
    arrays = hand.on_mesh(mesh, turned, spec=spec)
    got = jax.jit(lambda q, k, v, dy: jax.vjp(f, q, k, v)[1](dy))(*arrays)
    back = [np.asarray(g).swapaxes(1, 2)[:, :, np.argsort(order)]
            for g, order in zip(got, orders, strict=False)]  # fmt: skip
    hold("f32", x, back, scale=-0.3, is_causal=True)


def test_what_it_compiles_to(jax, hand):
    """P steps each way; dk and dv travel as float32, one step behind, and the scratch in one buffer."""
    mesh, x = hand.mesh_of(4), draw("bf16", 4, query_len=4 * 8, **SHAPE)
    f = hand.in_ring(mesh, is_causal=True)
    lowered = jax.jit(lambda q, k, v, dy: jax.vjp(f, q, k, v)[1](dy)).lower(
        *hand.on_mesh(mesh, x[:4])
    )
    said = lowered.as_text()
    # The backward does not reuse the K and V that the forward received: that would be all of them.
    assert said.count("stablehlo.optimization_barrier") == 1
    hops = [line for line in said.splitlines() if "stablehlo.collective_permute" in line]
    assert len(hops) == 6 * 3
    assert sum("tensor<2x2x8x32xf32>" in line for line in hops) == 2 * 3
    program = lowered.compile().as_text()
    calls = [line for line in program.splitlines() if hand.BACKWARD in line]
    aliased = ["output_to_operand_aliasing={{0}: (5, {})}" in line for line in calls]
    assert sorted(aliased) == [False, True, True, True]
    scratch = re.search(r"f32\[1,1,1,\d+\]", calls[0])[0]
    copies = [line for line in program.splitlines() if re.search(r" copy(-start)?\(", line)]
    assert not any(scratch in line for line in copies), copies


def test_one_device_rounds_in_the_kernel(jax, hand):
    mesh, x = hand.mesh_of(1), draw("bf16", 5, query_len=32, **SHAPE)
    f = hand.in_ring(mesh)
    program = (
        jax.jit(lambda q, k, v, dy: jax.vjp(f, q, k, v)[1](dy))
        .lower(*hand.on_mesh(mesh, x[:4]))
        .compile()
        .as_text()
    )
    assert program.count(hand.STEP) == program.count(hand.BACKWARD) == 1
    call = next(line for line in program.splitlines() if hand.BACKWARD in line)
    assert "bf16[2,2,32,32]" in call.partition("custom-call(")[0]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_checkpoint(jax, ring, hand, small, saved, within):
    """Recomputed by the forward's steps or kept by name, with the same bits."""
    mesh, x, arrays = small
    names = jax.checkpoint_policies.save_only_these_names("ring_attention")
    policy = names if saved else None
    spec = hand.ROWS

    def local(q, k, v):
        return ring.ring_attention(q, k, v, "ring", is_causal=True)

    def gradients(inner, outer):
        f = outer(jax.shard_map(inner(local), mesh=mesh, in_specs=spec, out_specs=spec))
        dy = hand.on_mesh(mesh, [x.dy])[0]
        return jax.grad(lambda q, k, v: (jax.numpy.sin(f(q, k, v)) * dy).sum(), (0, 1, 2))

    def same(f):
        return f

    def remat(f):
        return jax.checkpoint(f, policy=policy)

    plain = jax.jit(gradients(same, same))(*arrays)
    recomputed = gradients(remat, same) if within else gradients(same, remat)
    assert bits(jax.jit(recomputed)(*arrays)) == bits(plain)
    traced = str(jax.make_jaxpr(recomputed)(*arrays))
    assert traced.count("baracuda_attention_step[") == (2 if saved else 4)
    assert traced.count("baracuda_attention_backward_step[") == 2


def test_layers_in_a_scan(jax, ring, hand, small):
    mesh, _, arrays = small

    def layer(h, k, v):
        return h + ring.ring_attention(h, k, v, "ring", is_causal=True)

    def unrolled(q, k, v):
        return layer(layer(q, k, v), k, v)

    def scanned(q, k, v):
        body = jax.checkpoint(lambda h, _: (layer(h, k, v), None))
        return jax.lax.scan(body, q, None, length=2)[0]

    got = []
    for local in (unrolled, scanned):
        f = jax.shard_map(local, mesh=mesh, in_specs=hand.ROWS, out_specs=hand.ROWS)
        loss = jax.grad(lambda q, k, v, f=f: f(q, k, v).sum(), (0, 1, 2))
        got.append(jax.jit(loss)(*arrays))
    assert errors(got[1], [np.asarray(g, np.float64) for g in got[0]])["dk"] < 1e-6
    assert bits(got[0][:1]) == bits(got[1][:1])


def test_eagerly(jax, hand, small):
    """Without jit each step is its own program."""
    mesh, x, arrays = small
    f = hand.in_ring(mesh, "striped", is_causal=True)
    with jax.set_mesh(mesh):
        y, pull = jax.vjp(f, *arrays)
        got = pull(hand.on_mesh(mesh, [x.dy])[0])
        assert bits([f(*arrays)]) == bits([y])
    compiled = jax.jit(lambda q, k, v, dy: jax.vjp(f, q, k, v)[1](dy))
    assert bits(compiled(*arrays, *hand.on_mesh(mesh, [x.dy]))) == bits(got)


def test_vmap_is_a_larger_batch(jax, ring, hand, small):
    """Any mapped dimension. The gradient of an operand that is not mapped is the sum."""
    mesh, x, _ = small
    q = np.stack([x.q, 2 * x.q, -x.q], 1)
    v = np.stack([x.v, x.v + 1, 3 * x.v])
    dy = np.stack([x.dy, -x.dy, x.dy + 1], 1)
    spec = jax.sharding.PartitionSpec
    mapped, whole = spec(None, None, None, "ring"), hand.ROWS

    def local(q, k, v):
        def attend(q, k, v):
            return ring.ring_attention(q, k, v, "ring", is_causal=True, return_lse=True)

        return jax.vmap(attend, in_axes=(1, None, 0), out_axes=(1, 0))(q, k, v)

    f = jax.shard_map(
        local, mesh=mesh, in_specs=(mapped, whole, mapped), out_specs=(mapped, mapped)
    )
    q_, v_, dy_ = hand.on_mesh(mesh, [q, v, dy], spec=mapped)
    (k_,) = hand.on_mesh(mesh, [x.k])
    (y, lse), pull = jax.vjp(jax.jit(f), q_, k_, v_)
    exact = [bk.reference.attention(q[:, i], x.k, v[i], is_causal=True) for i in range(3)]
    assert bk.reference.error_of(y, np.stack([e[0] for e in exact], 1))["relative"] < 1e-6
    assert np.allclose(lse, np.stack([e[1] for e in exact]), atol=1e-5)
    with jax.set_mesh(mesh):
        got = jax.jit(lambda dy, lse: pull((dy, 0 * lse)))(dy_, lse)
    each = [attention_backward(q[:, i], x.k, v[i], dy[:, i], is_causal=True) for i in range(3)]
    truth = [np.stack([e[0] for e in each], 1), sum(e[1] for e in each),
             np.stack([e[2] for e in each])]  # fmt: skip
    assert_gradients("host", "f32", got, truth)


def test_vmap_of_steps(jax, ring):
    """Each example has its own state and, if it has its own rank, its own positions."""
    q, k, v = draw("f32", 6, query_len=16, **SHAPE)[:3]
    many = [np.stack([a, 2 * a]) for a in (q, k, v)]

    def two(q, k, v):
        options = {"world_size": 2, "is_causal": True}
        state = ring.attention_step(q, k, v, rank=1, origin=1, last=False, **options)
        return ring.attention_step(q, k, v, state, rank=1, origin=0, **options)

    y, lse = jax.vmap(two)(*many)
    for i in range(2):
        one = two(*(a[i] for a in many))
        assert np.allclose(y[i], one[0], atol=1e-6) and np.allclose(lse[i], one[1], atol=1e-6)
    state = ring.attention_step(q, k, v, last=False)

    def of_keys(k):
        return ring.attention_step(q, k, v, state)[0]

    def of_rank(r):
        return ring.attention_step(q, k, v, rank=r, world_size=2, is_causal=True)[0]

    for f, arrays in ((of_keys, many[1]), (of_rank, np.arange(2))):
        y = jax.vmap(f)(arrays)
        assert all(np.array_equal(y[i], f(arrays[i])) for i in range(2))


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_state_of_one_example_is_its_own(jax, ring, is_causal):
    """JAX selects among states where a branch or a loop depends on a mapped value."""
    lax = jax.lax
    drawn = [draw("f32", seed, query_len=16, **SHAPE)[:3] for seed in range(3)]
    q, k, v = map(np.stack, zip(*drawn, strict=True))
    options = {"rank": 1, "world_size": 2, "is_causal": is_causal}

    def branches(q, k, v, use):
        def more(s):
            return ring.attention_step(q, -k, 2 * v, s, origin=0, last=False, **options)

        s = ring.attention_step(q, k, v, origin=1, last=False, **options)
        s = lax.cond(use > 1, more, lambda s: s, s)
        s = lax.fori_loop(0, use, lambda _, s: more(s), s)
        return ring.attention_step(q, k, v, s, origin=0, **options)

    uses = np.array([0, 3, 1])
    y, lse = jax.jit(jax.vmap(branches))(q, k, v, uses)
    nested = jax.vmap(jax.vmap(branches, in_axes=(0, 0, 0, None)), in_axes=(None, None, None, 0))
    every, _ = nested(q, k, v, uses)
    for i in range(3):
        one = branches(q[i], k[i], v[i], uses[i])
        assert np.allclose(y[i], one[0], atol=1e-6) and np.allclose(lse[i], one[1], atol=1e-6)
        for j in range(3):
            one, _ = branches(q[i], k[i], v[i], uses[j])
            assert np.allclose(every[j, i], one, atol=1e-6)

    def first(q, k, v):
        return ring.attention_step(q, k, v, origin=1, last=False, **options)

    def second(q, k, v, s):
        return ring.attention_step(q, -k, v, s, origin=0, **options)[0]

    states = jax.vmap(first)(q, k, v)
    expected = jax.vmap(second)(q, k, v, states)
    turned = jax.vmap(second)(q[::-1], k[::-1], v[::-1], states[::-1])[::-1]
    assert np.array_equal(turned, expected)
    for i in range(3):
        assert np.array_equal(second(q[i], k[i], v[i], states[i]), expected[i])


def test_a_branch_that_a_mapped_value_chooses(jax, ring):
    """JAX maps the positions then: refused if they matter."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("ring",))
    rows = jax.sharding.PartitionSpec(None, None, "ring")
    q = np.stack([draw("f32", seed, query_len=16, **SHAPE)[0] for seed in range(3)])
    on = np.array([True, False, True])
    for is_causal in (False, True):
        f = jax.shard_map(
            lambda q, causal=is_causal: ring.ring_attention(q, q, q, "ring", is_causal=causal),
            mesh=mesh, in_specs=rows, out_specs=rows,
        )  # fmt: skip

        def choose(on, q, f=f):
            return jax.lax.cond(on, f, lambda q: q, q)

        if is_causal:
            with pytest.raises(bk.UnsupportedError, match="got positions along a mapped axis"):
                jax.vmap(choose)(on, q)
            continue
        y = jax.vmap(choose)(on, q)
        for i in range(3):
            assert np.allclose(y[i], choose(on[i], q[i]), atol=1e-6)


# A mesh of two axes, explicit as jax.make_mesh makes them.


@pytest.fixture(scope="module")
def plane(jax):
    return jax.make_mesh((2, 4), ("data", "ring"))


@pytest.mark.parametrize("kind", ["all manual", "ring manual", "unchecked", "heads", "vmap"])
def test_batches_over_another_axis(jax, ring, hand, plane, kind):
    """Every device computes its part: all axes manual, or the ring's alone; of heads too."""
    spec = jax.sharding.PartitionSpec
    x = draw("f32", 7, query_len=32, **SHAPE)
    arrays = x[:4]
    cut = spec(None, "data", "ring") if kind == "heads" else spec("data", None, "ring")
    if kind == "vmap":
        arrays, cut = [np.stack([a, -a]) for a in arrays], spec("data", None, None, "ring")
    manual = cut if kind == "all manual" else hand.ROWS

    def local(q, k, v):
        return ring.ring_attention(q, k, v, "ring", is_causal=True)

    with jax.set_mesh(plane):
        f = jax.shard_map(
            local,
            in_specs=manual,
            out_specs=manual,
            axis_names=set(plane.axis_names) if kind == "all manual" else {"ring"},
            check_vma=kind != "unchecked",
        )
        f = jax.vmap(f) if kind == "vmap" else f
        gradients = jax.jit(jax.grad(lambda q, k, v, dy: (f(q, k, v) * dy).sum(), (0, 1, 2)))
        operands = hand.on_mesh(plane, arrays, spec=cut)
        if kind == "vmap" and jax.__version_info__ < (0, 10):
            with pytest.raises(bk.UnsupportedError, match="explicit mesh axes .* must be JAX 0.10"):
                gradients(*operands)
            return
        got = gradients(*operands)
    assert spec(*got[1].sharding.spec[: len(cut)]) == cut
    if kind == "vmap":
        for i in range(2):
            one = x._replace(**{name: a[i] for name, a in zip(("q", "k", "v", "dy"), arrays,
                                                              strict=True)})  # fmt: skip
            hold("f32", one, [np.asarray(g)[i] for g in got], is_causal=True)
    else:
        hold("f32", x, got, is_causal=True)


@pytest.mark.parametrize("checked", [True, False])
def test_what_is_alike_on_an_axis_gets_the_sum(jax, ring, hand, plane, checked):
    """Queries that the data axis does not shard, and a weight that no axis shards."""
    spec = jax.sharding.PartitionSpec
    whole, cut = hand.ROWS, spec("data", None, "ring")
    x = draw("f32", 8, query_len=32, **SHAPE)

    def local(q, k, v, weight):
        return ring.ring_attention(q * weight, k, v, "ring")

    f = jax.shard_map(
        local, mesh=plane, in_specs=(whole, cut, cut, spec()), out_specs=cut, check_vma=checked
    )
    (q,) = hand.on_mesh(plane, [x.q[:1]], spec=whole)
    k, v, dy = hand.on_mesh(plane, x[1:4], spec=cut)
    with jax.set_mesh(plane):
        loss = jax.grad(lambda q, k, v, w: (f(q, k, v, w) * dy).sum(), (0, 1, 2, 3))
        *got, of_weight = jax.jit(loss)(q, k, v, np.float32(1))
    twice = np.repeat(x.q[:1], 2, 0)
    dq, dk, dv = attention_backward(twice, *x[1:4])
    assert_gradients("host", "f32", got, (dq.sum(0, keepdims=True), dk, dv))
    assert abs(float(of_weight) - (dq * twice).sum()) < 1e-4 * np.abs(dq * twice).sum()


def test_explicit_axes_that_do_not_fit(jax, ring, hand, plane):
    spec = jax.sharding.PartitionSpec
    x = draw("f32", 9, query_len=32, **SHAPE)
    by_batch, by_head = spec("data", None, "ring"), spec(None, "data", "ring")
    by_column = spec(None, None, "ring", "data")
    f = jax.shard_map(lambda q, k, v: ring.ring_attention(q, k, v, "ring"), mesh=plane,
                      in_specs=hand.ROWS, out_specs=hand.ROWS, axis_names={"ring"})  # fmt: skip
    q, k, v = hand.on_mesh(plane, x[:3], spec=by_batch)
    with jax.set_mesh(plane):
        with pytest.raises(bk.InvalidProblemError, match="k: got P.*must be sharded as q is"):
            f(q, *hand.on_mesh(plane, [x.k, x.v], spec=by_head))
        with pytest.raises(bk.InvalidProblemError, match="q: got P.*over batch and heads alone"):
            f(*hand.on_mesh(plane, x[:3], spec=by_column))
        with pytest.raises(bk.InvalidProblemError, match="call attention_step inside jax.shard"):
            ring.attention_step(q, k, v)


def test_ctrl_c_waits_for_the_end_of_a_gradient(jax, hand):
    """Devices that exchange all finish; then the exception of the signal is raised once."""
    mesh = hand.mesh_of(2)
    x = draw("f32", 10, batch=1, heads=4, head_dim=64, query_len=2 * 1024)
    f = hand.in_ring(mesh)
    call = jax.jit(lambda q, k, v, dy: jax.vjp(f, q, k, v)[1](dy))
    arrays = hand.on_mesh(mesh, x[:4])
    first = bits(call(*arrays))
    for delay in (0.02, 0.1):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        got, raised = [], []
        try:
            timer.start()
            got = call(*arrays)
            jax.block_until_ready(got)
            timer.join()
            for _ in range(100):
                time.sleep(0.001)
        except KeyboardInterrupt as error:
            raised.append(error)
        timer.join()
        assert len(raised) == 1
        assert bits(call(*arrays)) == first


# Refusals.


def test_forward_mode_and_second_order(jax, ring, hand, small):
    mesh, x, (q, k, v) = small
    f = hand.in_ring(mesh, is_causal=True)

    def loss(s):
        return f(q * s, k, v).sum()

    one = (np.float32(1),)

    def compiled(f):
        return lambda: jax.jit(f).lower(*one)

    forward = [
        lambda: jax.jvp(loss, one, one),
        compiled(lambda s: jax.jvp(loss, (s,), (s,))),
        compiled(lambda s: jax.linearize(loss, s)[1](s)),
        compiled(jax.jacfwd(loss)),
        compiled(jax.hessian(loss)),
    ]
    second = [
        compiled(jax.grad(lambda s: jax.vjp(f, q, k, v)[1](q * s)[0].sum())),
        compiled(jax.grad(jax.grad(loss))),
        compiled(jax.jacrev(jax.grad(loss))),
        compiled(lambda s: jax.jvp(jax.grad(loss), (s,), (s,))),
    ]
    with jax.set_mesh(mesh):
        for call in forward:
            with pytest.raises(bk.UnsupportedError, match="forward-mode .* is not served"):
                call()
        for call in second:
            with pytest.raises(bk.UnsupportedError, match="gradient of its gradient .* not served"):
                call()
    with pytest.raises(bk.UnsupportedError, match="attention_step: a single step has no gradient"):
        jax.grad(lambda a: ring.attention_step(a, x.k, x.v)[0].sum())(x.q)


def test_a_problem_without_a_backward_is_refused_before_its_forward_runs(
    jax, ring, hand, small, monkeypatch
):
    from baracuda_kernels.interop.jax import _lowering

    explain = _lowering.registry.explain

    def forward_alone(descriptor, arch, preference, direction):
        if direction is bk.Direction.BACKWARD:
            raise bk.UnsupportedError("no kernel has this backward")
        return explain(descriptor, arch, preference, direction)

    monkeypatch.setattr(_lowering.registry, "explain", forward_alone)
    mesh, _, arrays = small
    f = hand.in_ring(mesh, scale=0.123)
    with jax.set_mesh(mesh):
        assert np.isfinite(f(*arrays)).all()
        with pytest.raises(bk.UnsupportedError, match="no kernel has this backward"):
            jax.vjp(f, *arrays)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("return_lse", 1, "return_lse: got 1, must be a bool"),
        ("deterministic", None, "deterministic: got None, must be a bool"),
        ("sm_margin", -1, "sm_margin: got -1, must be an integer"),
    ],
)
def test_options_that_are_none(hand, small, name, value, message):
    mesh, _, arrays = small
    with pytest.raises(bk.InvalidProblemError, match=message):
        hand.in_ring(mesh, **{name: value})(*arrays)
