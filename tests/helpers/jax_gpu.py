"""Cases of interop.jax on GPUs, a program of its own: JAX shares no process with torch here.

python tests/helpers/jax_gpu.py whole|steps|ring DTYPE FAMILY HEAD_DIM
"""

import os
import sys
from pathlib import Path

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np

from baracuda_kernels.interop.jax import attention_step, ring_attention, sequence_order
from baracuda_kernels.testing import assert_close, attention, numpy_qkv

NO_CUDA = "JAX has no CUDA device here"
SHAPE = {"batch": 2, "heads": 8, "kv_heads": 2}
SPEC = jax.sharding.PartitionSpec(None, None, "ring")


def whole(dtype: str, family: str, head_dim: int) -> None:
    """P = 1 under shard_map: one fused kernel, each mask and both dimension orders."""
    mesh = jax.make_mesh((1,), ("ring",), devices=jax.devices()[:1])
    q, k, v = numpy_qkv("normal", dtype, 0, query_len=777, head_dim=head_dim, **SHAPE)
    for is_causal in (False, True):
        f = jax.jit(
            jax.shard_map(
                lambda q, k, v, causal=is_causal: ring_attention(
                    q, k, v, "ring", is_causal=causal, return_lse=True
                ),
                mesh=mesh,
                in_specs=SPEC,
                out_specs=(SPEC, SPEC),
            )
        )
        arrays = [jax.device_put(x, jax.NamedSharding(mesh, SPEC)) for x in (q, k, v)]
        y, lse = map(np.asarray, f(*arrays))
        exact = attention(q, k, v, is_causal=is_causal)
        assert_close(family, dtype, y, exact[0], lse, exact[1])
        assert f.lower(*arrays).compile().as_text().count("custom-call(") == 1
        turned = [x.swapaxes(1, 2) for x in (q, k, v)]
        step = jax.jit(
            lambda q, k, v, causal=is_causal: attention_step(
                q, k, v, is_causal=causal, tensor_layout="bshd"
            )
        )
        other = np.asarray(step(*turned)[0]).swapaxes(1, 2)
        assert (other.view(np.uint8) == y.view(np.uint8)).all()


def steps(dtype: str, family: str, head_dim: int) -> None:
    """Every rank of a ring of 8, its steps unrolled in one program, in every layout."""
    ranks, rows = 8, 96
    q, k, v = numpy_qkv("normal", dtype, 1, query_len=ranks * rows, head_dim=head_dim, **SHAPE)
    exact = attention(q, k, v, is_causal=True)
    for layout in ("contiguous", "zigzag", "striped"):
        order = sequence_order(ranks * rows, ranks, layout)
        parts = [np.split(x[:, :, order], ranks, 2) for x in (q, k, v)]

        @jax.jit
        def one_rank(q, ks, vs, rank, layout=layout):
            state = None
            for step in range(ranks):
                origin = (rank - step) % ranks
                state = attention_step(
                    q,
                    jax.numpy.take(ks, origin, 0),
                    jax.numpy.take(vs, origin, 0),
                    state,
                    rank=rank,
                    origin=origin,
                    world_size=ranks,
                    last=step == ranks - 1,
                    is_causal=True,
                    sequence_layout=layout,
                    sm_margin=8 if step < 7 else 0,
                )
            return state

        ks, vs = np.stack(parts[1]), np.stack(parts[2])
        got = [one_rank(parts[0][rank], ks, vs, np.int32(rank)) for rank in range(ranks)]
        back = np.argsort(order)
        y, lse = (np.concatenate([np.asarray(g[i]) for g in got], 2)[:, :, back] for i in (0, 1))
        assert_close(family, dtype, y, exact[0], lse, exact[1])
        program = one_rank.lower(parts[0][0], ks, vs, np.int32(0)).compile().as_text()
        check_aliasing(program, ranks)


def ring(dtype: str, family: str, head_dim: int) -> None:
    """All GPUs of this process in one ring, XLA moving K and V, in every layout and mask."""
    ranks, rows = jax.device_count(), 321
    mesh = jax.make_mesh((ranks,), ("ring",))
    q, k, v = numpy_qkv("normal", dtype, 2, query_len=ranks * rows, head_dim=head_dim, **SHAPE)
    for layout in ("contiguous", "zigzag", "striped"):
        order = sequence_order(ranks * rows, ranks, layout)
        sharding = jax.NamedSharding(mesh, SPEC)
        arrays = [jax.device_put(x[:, :, order], sharding) for x in (q, k, v)]
        for is_causal in (False, True):
            f = jax.jit(
                jax.shard_map(
                    lambda q, k, v, layout=layout, is_causal=is_causal: ring_attention(
                        q, k, v, "ring", is_causal=is_causal, sequence_layout=layout,
                        return_lse=True,
                    ),
                    mesh=mesh,
                    in_specs=SPEC,
                    out_specs=(SPEC, SPEC),
                )
            )  # fmt: skip
            y, lse = (np.asarray(x)[:, :, np.argsort(order)] for x in f(*arrays))
            exact = attention(q, k, v, is_causal=is_causal)
            assert_close(family, dtype, y, exact[0], lse, exact[1])


def check_aliasing(program: str, ranks: int) -> None:
    """The state of all steps is one buffer: aliased by every middle step, copied by none."""
    calls = [x for x in program.splitlines() if 'custom_call_target="baracuda_attention' in x]
    aliased = ["output_to_operand_aliasing={{}: (4, {})}" in x for x in calls]
    assert aliased == [False] + [True] * (ranks - 2) + [False], aliased
    state = calls[0].split("= ")[1].split("{")[0]
    assert state.startswith("f32[1,1,1,"), calls[0]
    copies = [x for x in program.splitlines() if "copy" in x.split("(")[0] and state in x]
    assert not copies, copies


if __name__ == "__main__":
    case, dtype, family, head_dim = sys.argv[1:]
    if jax.default_backend() != "gpu":
        print(NO_CUDA)
    else:
        {"whole": whole, "steps": steps, "ring": ring}[case](dtype, family, int(head_dim))
        print(f"passed on {jax.device_count()} x {jax.devices()[0].device_kind}")
