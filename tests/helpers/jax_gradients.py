"""Gradients through interop.jax: of a ring over a mesh, and of its schedule on one device.

As a program it compares the gradients on GPUs with float64: JAX shares no process with torch here.

python tests/helpers/jax_gradients.py whole|steps|ring DTYPE HEAD_DIM
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from helpers.gradients import Problem, draw, dtype_of, errors

import baracuda_kernels as bk
from baracuda_kernels import registry
from baracuda_kernels.interop.jax import _backward, attention_step, ring_attention, sequence_order
from baracuda_kernels.interop.jax._ring import position_maps
from baracuda_kernels.testing import assert_gradients, attention_backward

NO_CUDA = "JAX has no CUDA device here"
ROWS = jax.sharding.PartitionSpec(None, None, "ring")
STEP = 'custom_call_target="baracuda_attention_step"'
BACKWARD = 'custom_call_target="baracuda_attention_backward_step"'


def mesh_of(ranks: int) -> Any:
    return jax.make_mesh((ranks,), ("ring",), devices=jax.devices()[:ranks])


def on_mesh(mesh: Any, arrays: Any, order: Any = None, spec: Any = ROWS) -> list[Any]:
    """The arrays on the mesh, with their rows in that order."""
    sharding = jax.NamedSharding(mesh, spec)
    return [jax.device_put(x if order is None else np.take(x, order, 2), sharding) for x in arrays]


def in_ring(mesh: Any, layout: str = "contiguous", **options: Any) -> Any:
    """ring_attention of whole arrays whose rows are in the layout's order."""
    specs = (ROWS, ROWS) if options.get("return_lse") else ROWS
    return jax.shard_map(
        lambda q, k, v: ring_attention(q, k, v, "ring", sequence_layout=layout, **options),
        mesh=mesh,
        in_specs=ROWS,
        out_specs=specs,
    )


def ring_gradients(mesh: Any, x: Problem, layout: str, **options: Any) -> tuple[Any, ...]:
    """dq, dk, dv in the order of the sequence; the loss uses lse too if the problem has dlse."""
    order = sequence_order(x.q.shape[2], mesh.size, layout)
    f = in_ring(mesh, layout, return_lse=x.dlse is not None, **options)

    @jax.jit
    def gradients(q: Any, k: Any, v: Any, *of_results: Any) -> Any:
        pull = jax.vjp(f, q, k, v)[1]
        return pull(of_results if x.dlse is not None else of_results[0])

    arrays = on_mesh(mesh, [a for a in x if a is not None], order)
    back = np.argsort(order)
    return tuple(np.asarray(g)[:, :, back] for g in gradients(*arrays))


def schedule_gradients(x: Problem, ranks: int, layout: str, **options: Any) -> tuple[Any, ...]:
    """The same by hand on one device: each rank's steps, then the sums of each chunk's shares. The
    other ranks' shares are added in the schedule's order, and their sum to the own rank's share."""
    length = x.q.shape[2]
    order = sequence_order(length, ranks, layout)
    parts = [None if a is None else np.stack(np.split(a[:, :, order], ranks, 2)) for a in x]
    q_all, k_all, v_all, dy_all, dlse_all = parts
    descriptor = bk.RingAttentionDescriptor(
        *x.q.shape[:2], length // ranks, x.k.shape[2] // ranks, x.q.shape[3],
        element=dtype_of(x.q).upper(), num_kv_heads=x.k.shape[1], sequence_layout=layout.upper(),
        **options,
    )  # fmt: skip

    @jax.jit
    def of_rank(ks: Any, vs: Any, q: Any, dy: Any, dlse: Any, rank: Any) -> Any:
        state: Any = None
        for step in range(ranks):
            origin = (rank - step) % ranks
            state = attention_step(
                q, ks[origin], vs[origin], state, rank=rank, origin=origin, world_size=ranks,
                last=step == ranks - 1, sequence_layout=layout, **options,
            )  # fmt: skip
        y, lse = state
        shares = []
        kept = [y, lse[..., None]] + ([] if dlse is None else [dlse[..., None]])
        for step in range(ranks):
            origin = (rank - step) % ranks
            maps = [position_maps(descriptor, ranks, rank, origin)] * descriptor.is_causal
            scratch, *results = _backward.bind(
                q, ks[origin], vs[origin], dy, *maps, *kept, descriptor=descriptor,
                first=step == 0, last=step == ranks - 1, has_dlse=dlse is not None,
                sequence_dim=2, sm_margin=0, deterministic=False,
            )  # fmt: skip
            kept = [scratch]
            shares.append(results[:2])
        return results[2], shares

    found = [
        of_rank(k_all, v_all, q_all[r], dy_all[r], None if dlse_all is None else dlse_all[r],
                np.int32(r))
        for r in range(ranks)
    ]  # fmt: skip
    sums: list[list[Any]] = [[], []]
    for origin in range(ranks):
        for which in (0, 1):
            shares = [np.asarray(found[(origin + s) % ranks][1][s][which]) for s in range(ranks)]
            total = shares[0]
            if ranks > 1:
                others = shares[1]
                for share in shares[2:]:
                    others = others + share
                total = total + others
            sums[which].append(np.asarray(jnp.asarray(total).astype(x.k.dtype)))
    back = np.argsort(order)
    dq = [np.asarray(one[0]) for one in found]
    return tuple(np.concatenate(chunks, 2)[:, :, back] for chunks in (dq, *sums))


def check(family: str, x: Problem, got: Any, *, is_causal: bool) -> None:
    exact = attention_backward(*x[:4], dlse=x.dlse, is_causal=is_causal)
    print(family, dtype_of(x.q), x.q.shape, errors(got, exact))
    assert_gradients(family, dtype_of(x.q), got, exact, summands=64.0)


def _family(dtype: str, head_dim: int) -> str:
    problem = bk.FlashSdpaDescriptor(1, 8, 64, 64, head_dim, element=dtype.upper(), num_kv_heads=2)
    family = registry.explain(problem, direction="BACKWARD").family
    assert family is not None
    return family


SHAPE = {"batch": 2, "heads": 8, "kv_heads": 2}


def whole(dtype: str, head_dim: int) -> None:
    """P = 1: two custom calls; recomputed, vmapped; the refusals of what is not served."""
    family, mesh = _family(dtype, head_dim), mesh_of(1)
    x = draw(dtype, 0, query_len=777, head_dim=head_dim, dlse=True, **SHAPE)
    for is_causal in (False, True):
        got = ring_gradients(mesh, x, "contiguous", is_causal=is_causal)
        check(family, x, got, is_causal=is_causal)
    ordered = ring_gradients(mesh, x, "contiguous", is_causal=True, deterministic=True)
    again = ring_gradients(mesh, x, "contiguous", is_causal=True, deterministic=True)
    check(family, x, ordered, is_causal=True)
    assert all((a.view(np.uint8) == b.view(np.uint8)).all()
               for a, b in zip(ordered, again, strict=True))  # fmt: skip
    f = in_ring(mesh, is_causal=True)
    arrays = on_mesh(mesh, x[:4])
    counts = []
    for policy in (None, jax.checkpoint_policies.save_only_these_names("ring_attention")):

        def loss(q: Any, k: Any, v: Any, dy: Any, policy: Any = policy) -> Any:
            y = jax.checkpoint(f, policy=policy)(q, k, v)
            return (jnp.sin(y.astype(jnp.float32)) * dy).sum()

        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().as_text()
        counts.append((program.count(STEP), program.count(BACKWARD)))
    assert counts == [(2, 1), (1, 1)], counts
    # Two problems are one problem with a larger batch.
    halves = [np.stack([a[:1], a[1:]]) for a in x[:4]]
    spec = jax.sharding.PartitionSpec(None, *ROWS)
    mapped = jax.vmap(lambda q, k, v, dy: jax.vjp(f, q, k, v)[1](dy))
    got = [np.asarray(g)[:, 0] for g in jax.jit(mapped)(*on_mesh(mesh, halves, spec=spec))]
    check(family, x._replace(dlse=None), got, is_causal=True)


def steps(dtype: str, head_dim: int) -> None:
    """Every rank of a ring of 8 on one device, in every layout, ranks traced."""
    family = _family(dtype, head_dim)
    x = draw(dtype, 1, query_len=8 * 96, head_dim=head_dim, dlse=True, **SHAPE)
    for layout in ("contiguous", "zigzag", "striped"):
        check(family, x, schedule_gradients(x, 8, layout, is_causal=True), is_causal=True)
    check(family, x, schedule_gradients(x, 8, "contiguous", is_causal=False), is_causal=False)


def ring(dtype: str, head_dim: int) -> None:
    """All GPUs of this process in one ring, XLA moving K, V and their gradients."""
    family, mesh = _family(dtype, head_dim), mesh_of(jax.device_count())
    x = draw(dtype, 2, query_len=mesh.size * 321, head_dim=head_dim, dlse=True, **SHAPE)
    for layout in ("contiguous", "zigzag", "striped"):
        for is_causal in (False, True):
            got = ring_gradients(mesh, x, layout, is_causal=is_causal)
            check(family, x, got, is_causal=is_causal)
    f = in_ring(mesh, is_causal=True)
    arrays = on_mesh(mesh, x[:4])
    program = jax.jit(lambda q, k, v, dy: jax.vjp(f, q, k, v)[1](dy)).lower(*arrays).compile()
    text, hops = program.as_text(), mesh.size - 1
    assert (text.count(STEP), text.count(BACKWARD)) == (mesh.size, mesh.size)
    # K and V are sent again in the backward: no device keeps those that it received in the forward.
    # XLA may send several arrays in one exchange.
    sent = re.findall(r" collective-permute(?:-start)?\(([^)]*)\)", text)
    assert sum(arrays.count("%") for arrays in sent) == 6 * hops, sent


if __name__ == "__main__":
    case, dtype, head_dim = sys.argv[1:]
    if jax.default_backend() != "gpu":
        print(NO_CUDA)
    else:
        {"whole": whole, "steps": steps, "ring": ring}[case](dtype, int(head_dim))
        print(f"passed on {jax.device_count()} x {jax.devices()[0].device_kind}")
