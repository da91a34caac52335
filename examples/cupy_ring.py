"""Ring Attention on CuPy arrays: four virtual ranks on one GPU, checked against float64.

    python examples/cupy_ring.py --layout zigzag

Every rank has its own rows of q, k and v and its own scratch. `run_all` enqueues the whole ring on
CuPy's current stream. With one process and GPU per rank, each process calls `plan.run` with a
`Communicator` instead (see mpirun_ring.py).
"""

import argparse

import cupy as cp
import numpy as np

import baracuda_kernels as bk
from baracuda_kernels import reference


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rows", type=int, default=512, help="rows of each rank")
    parser.add_argument("--layout", default="zigzag", choices=["contiguous", "zigzag", "striped"])
    options = parser.parse_args()
    ranks, total, heads, kv_heads, head_dim = options.ranks, options.ranks * options.rows, 8, 2, 128

    random = np.random.default_rng(0)
    whole = [
        random.standard_normal((1, h, total, head_dim)).astype(np.float16)
        for h in (heads, kv_heads, kv_heads)
    ]
    shards = [bk.shard(x, ranks, sequence_layout=options.layout) for x in whole]

    stream = cp.cuda.get_current_stream()
    desc = bk.RingAttentionDescriptor(
        1,
        heads,
        options.rows,
        options.rows,
        head_dim,
        is_causal=True,
        element="F16",
        num_kv_heads=kv_heads,
        sequence_layout=options.layout,
    )
    plan = bk.RingAttentionPlan.select(desc, bk.Stream(stream))
    args = [
        rank_args(plan, *(cp.asarray(np.ascontiguousarray(x[rank])) for x in shards))
        for rank in range(ranks)
    ]
    ring = bk.LocalCommunicator.ring(ranks, device=cp.cuda.Device().id)
    ring.run_all(bk.Stream(stream), plan, [a for a, _ in args])
    y = bk.unshard([cp.asnumpy(y) for _, y in args], sequence_layout=options.layout)

    exact, _ = reference.attention(*whole, is_causal=True)
    print(f"{plan.family}, {ranks} ranks: rms error {reference.error_of(y, exact)['rms']:.2e}")


def rank_args(plan: bk.RingAttentionPlan, q: cp.ndarray, k: cp.ndarray, v: cp.ndarray):
    """One rank's arguments, and its y. Later calls may use the same scratch."""
    y = cp.empty_like(q)
    scratch = cp.empty((2, plan.kv_scratch_elements), q.dtype)
    state = cp.empty(plan.accumulator_scratch_bytes, cp.uint8)
    return bk.RingAttentionArgs(
        q=q,
        k=k,
        v=v,
        y=y,
        kv_scratch_a=scratch[0],
        kv_scratch_b=scratch[1],
        accumulator_scratch=state,
    ), y


if __name__ == "__main__":
    main()
