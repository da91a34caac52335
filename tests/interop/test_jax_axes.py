"""The mesh axes of a ring in interop.jax: their order, and what is refused."""

import numpy as np
import pytest
from helpers.gradients import draw

import baracuda_kernels as bk
from baracuda_kernels.testing import assert_close, assert_gradients, attention, attention_backward

pytestmark = pytest.mark.framework("jax")

SHAPE = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 32, "query_len": 32}


@pytest.fixture(scope="module")
def ring(jax):
    from baracuda_kernels.interop import jax as adapter

    return adapter


@pytest.fixture(scope="module")
def plane(jax):
    return jax.make_mesh((2, 4), ("data", "ring"))


@pytest.mark.parametrize("names", [("a", "c"), ("c", "a"), ("b", "c", "a")])
@pytest.mark.parametrize("manual", ["all", "ring"])
def test_a_ring_over_several_axes(jax, ring, hand, names, manual):
    """The names may have another order than the mesh's. Their own order is that of the ranks."""
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"))
    cut = jax.sharding.PartitionSpec(None, None, names)
    f = jax.shard_map(
        lambda q, k, v: ring.ring_attention(
            q, k, v, names, is_causal=True, sequence_layout="zigzag", return_lse=True
        ),
        in_specs=cut,
        out_specs=(cut, cut),
        axis_names=set(mesh.axis_names if manual == "all" else names),
    )
    x = draw("f32", 0, dlse=True, **SHAPE)
    order = ring.sequence_order(32, 2 ** len(names), "zigzag")
    *arrays, dy, dlse = hand.on_mesh(mesh, x, order, spec=cut)
    with jax.set_mesh(mesh):
        results, pull = jax.vjp(jax.jit(f), *arrays)
        got = [*results, *pull((dy, dlse))]
    y, lse, *gradients = (np.asarray(a)[:, :, np.argsort(order)] for a in got)
    exact = attention(*x[:3], is_causal=True)
    assert_close("host", "f32", y, exact[0], lse, exact[1])
    truth = attention_backward(*x[:4], dlse=x.dlse, is_causal=True)
    assert_gradients("host", "f32", gradients, truth, peaked=True)


@pytest.mark.parametrize(
    "name",
    ["rong", "data", None, 0, ["ring"], {}, np.ones(2), ("ring", "data"), ("ring", "ring"),
     (("ring",),)],
)  # fmt: skip
def test_an_axis_that_is_none(jax, ring, hand, name):
    """Among them an axis of the mesh that is not of the shard_map."""
    arrays = draw("f32", 1, **SHAPE)[:3]
    with pytest.raises(bk.InvalidProblemError, match="axis_name: got .*, must be a mesh axis here"):
        ring.ring_attention(*arrays, name)
    mesh = jax.make_mesh((2, 4), ("data", "ring"))
    f = jax.shard_map(lambda q, k, v: ring.ring_attention(q, k, v, name), mesh=mesh,
                      in_specs=hand.ROWS, out_specs=hand.ROWS, axis_names={"ring"})  # fmt: skip
    with pytest.raises(bk.InvalidProblemError, match="axis_name: got .*, must be a mesh axis here"):
        f(*hand.on_mesh(mesh, arrays))


@pytest.mark.parametrize("is_causal", [False, True])
def test_an_axis_of_vmap(jax, ring, is_causal):
    arrays = [np.stack([a, a]) for a in draw("f32", 2, **SHAPE)[:3]]

    def attend(q, k, v):
        return ring.ring_attention(q, k, v, "ring", is_causal=is_causal)

    with pytest.raises(bk.InvalidProblemError, match="axis_name: got 'ring', must be a mesh axis"):
        jax.vmap(attend, axis_name="ring")(*arrays)


def test_sums_that_are_still_to_be_made(jax, ring, hand, plane):
    """An unreduced operand: attention of the parts is no part of the attention."""
    spec = jax.sharding.PartitionSpec
    x = draw("f32", 3, **SHAPE)
    columns, parts = spec(None, None, None, "data"), spec(unreduced={"data"})

    def unreduced(q):
        one = jax.reshard(jax.numpy.eye(32), spec("data"))
        return jax.numpy.einsum("bhsd,de->bhse", jax.reshard(q, columns), one, out_sharding=parts)

    def within(q, k, v):
        f = jax.shard_map(lambda q, k, v: ring.ring_attention(q, k, v, "ring"),
                          in_specs=(parts, spec(), spec()), out_specs=parts)  # fmt: skip
        return f(unreduced(q), k, v)

    def step(q, k, v):
        return ring.attention_step(k, unreduced(q), v)

    arrays = hand.on_mesh(plane, [x.q] * 3, spec=spec())
    with jax.set_mesh(plane):
        with pytest.raises(bk.InvalidProblemError, match="q: got an array .* unreduced over data"):
            jax.jit(within)(*arrays)
        with pytest.raises(bk.InvalidProblemError, match="k: got an array .* unreduced over data"):
            jax.jit(step)(*arrays)


def test_gradients_that_are_summed_later(jax, ring, hand, plane):
    """Reduced keys and values beside queries that vary: JAX sums their gradients."""
    spec = jax.sharding.PartitionSpec
    x = draw("f32", 4, **SHAPE)
    cut, later = spec("data", None, "ring"), spec(None, None, "ring", reduced={"data"})

    def attend(q, k, v, of_q=cut):
        f = jax.shard_map(lambda q, k, v: ring.ring_attention(q, k, v, "ring", is_causal=True),
                          in_specs=(of_q, later, later), out_specs=of_q)  # fmt: skip
        q = q if of_q is cut else jax.reshard(q, later)
        return f(q, jax.reshard(k, later), jax.reshard(v, later))

    q, dy = hand.on_mesh(plane, [x.q, x.dy], spec=cut)
    k, v = hand.on_mesh(plane, [x.k[:1], x.v[:1]])
    with jax.set_mesh(plane):
        got = jax.jit(lambda q, k, v, dy: jax.vjp(attend, q, k, v)[1](dy))(q, k, v, dy)
        with pytest.raises(bk.InvalidProblemError, match="q: got an array .* reduced over data"):
            jax.jit(lambda k, v: attend(k, k, v, later))(k, v)
    twice = [np.repeat(a[:1], 2, 0) for a in (x.k, x.v)]
    dq, dk, dv = attention_backward(x.q, *twice, x.dy, is_causal=True)
    truth = dq, dk.sum(0, keepdims=True), dv.sum(0, keepdims=True)
    assert_gradients("host", "f32", got, truth, peaked=True)
