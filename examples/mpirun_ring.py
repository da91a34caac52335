"""Ring Attention under MPI, one process per rank, checked against float64.

    mpiexec -n 4 python examples/mpirun_ring.py                  # NumPy arrays, messages by MPI
    mpiexec -n 8 python examples/mpirun_ring.py --device cuda    # CuPy arrays, messages by NCCL

On GPUs MPI only helps to make the NCCL communicator. On the host MPI carries K and V, through a
Transport.
"""

import argparse

import numpy as np
from mpi4py import MPI

import baracuda_kernels as bk
from baracuda_kernels import reference


class MpiTransport:
    """The ring's point-to-point messages, by non-blocking MPI on host memory."""

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm, self.rank, self.world_size = comm, comm.Get_rank(), comm.Get_size()
        self.requests: list[MPI.Request] = []

    def group_start(self) -> None:
        self.requests.clear()

    def send(self, buffer, peer: int, stream) -> None:
        self.requests.append(self.comm.Isend(memoryview(buffer), dest=peer))

    def recv(self, buffer, peer: int, stream) -> None:
        self.requests.append(self.comm.Irecv(memoryview(buffer), source=peer))

    def group_end(self) -> None:
        MPI.Request.Waitall(self.requests)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="host", choices=["host", "cuda"])
    parser.add_argument("--rows", type=int, default=256, help="rows of each rank")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--layout", default="zigzag", choices=["contiguous", "zigzag", "striped"])
    options = parser.parse_args()

    comm = MPI.COMM_WORLD
    rank, world_size = comm.Get_rank(), comm.Get_size()
    if options.device == "cuda":
        import cupy as xp

        local = comm.Split_type(MPI.COMM_TYPE_SHARED).Get_rank()
        xp.cuda.Device(local % xp.cuda.runtime.getDeviceCount()).use()
        stream = bk.Stream(xp.cuda.get_current_stream())
        ring = bk.Communicator.from_mpi(comm)
        dtype = np.dtype(np.float16)
    else:
        xp, stream, ring, dtype = np, bk.Stream.host(), MpiTransport(comm), np.dtype(np.float32)

    total = options.rows * world_size
    random = np.random.default_rng(0)  # the same whole sequence on every rank
    whole = [
        random.standard_normal((1, h, total, options.head_dim)).astype(dtype)
        for h in (options.heads, options.kv_heads, options.kv_heads)
    ]
    mine = [
        np.ascontiguousarray(bk.shard(x, world_size, sequence_layout=options.layout)[rank])
        for x in whole
    ]

    q, k, v = (xp.asarray(x) for x in mine)
    desc = bk.RingAttentionDescriptor(
        1,
        options.heads,
        options.rows,
        options.rows,
        options.head_dim,
        is_causal=True,
        element="F16" if options.device == "cuda" else "F32",
        num_kv_heads=options.kv_heads,
        sequence_layout=options.layout,
    )
    plan = bk.RingAttentionPlan.select(desc, stream)
    y, scratch = xp.empty_like(q), xp.empty((2, plan.kv_scratch_elements), dtype)
    state = xp.empty(plan.accumulator_scratch_bytes, np.uint8)
    args = bk.RingAttentionArgs(
        q=q,
        k=k,
        v=v,
        y=y,
        kv_scratch_a=scratch[0],
        kv_scratch_b=scratch[1],
        accumulator_scratch=state,
    )
    plan.run(stream, ring, args)
    stream.synchronize()

    positions = bk.positions(options.rows, rank, world_size, options.layout)
    exact, _ = reference.attention(mine[0], *whole[1:], is_causal=True, q_positions=positions)
    got = y if xp is np else xp.asnumpy(y)
    error = reference.error_of(got, exact)["relative"]
    errors = comm.gather(error)
    if rank == 0:
        for r, e in enumerate(errors):
            print(f"rank {r} of {world_size}: {plan.family}, relative error {e:.2e}")


if __name__ == "__main__":
    main()
