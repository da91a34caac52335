"""Causal ring attention, one process per rank, checked against float64.

    torchrun --nproc-per-node=8 examples/torchrun_ring.py

Every rank draws the same whole sequence, takes its own rows of it, and runs its part of the ring in
its own memory, on PyTorch's current stream.
"""

import argparse

import torch
import torch.distributed as dist

import baracuda_kernels as bk


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2048, help="rows of each rank")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--layout", default="zigzag", choices=["contiguous", "zigzag", "striped"])
    options = parser.parse_args()

    dist.init_process_group("nccl")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.cuda.set_device(rank % torch.cuda.device_count())
    total = options.rows * world_size
    whole_q, whole_k, whole_v = whole_sequence(options, total)
    q, k, v = (
        bk.shard(x, world_size, sequence_layout=options.layout)[rank].contiguous()
        for x in (whole_q, whole_k, whole_v)
    )

    stream = bk.Stream(torch.cuda.current_stream())
    desc = bk.RingAttentionDescriptor(
        batch_size=1,
        num_heads=options.heads,
        query_len=options.rows,
        key_len=options.rows,
        head_dim=options.head_dim,
        is_causal=True,
        element=bk.ElementKind.BF16,
        num_kv_heads=options.kv_heads,
        sequence_layout=bk.SequenceLayout.parse(options.layout),
    )
    plan = bk.RingAttentionPlan.select(desc, stream)
    y = torch.empty_like(q)
    kv_scratch = torch.empty(2, plan.kv_scratch_elements, dtype=q.dtype, device="cuda")
    state = torch.empty(plan.accumulator_scratch_bytes, dtype=torch.uint8, device="cuda")
    args = bk.RingAttentionArgs(
        q=q,
        k=k,
        v=v,
        y=y,
        kv_scratch_a=kv_scratch[0],
        kv_scratch_b=kv_scratch[1],
        accumulator_scratch=state,
    )
    with bk.Communicator.from_torch() as comm:
        plan.run(stream, comm, args)
        comm.synchronize(stream, timeout=60)

    positions = bk.positions(options.rows, rank, world_size, options.layout)
    error = rms_error(y, q, whole_k, whole_v, torch.as_tensor(positions, device="cuda"))
    print(f"rank {rank} of {world_size}: {plan.family}, rms error {error:.2e}", flush=True)
    dist.destroy_process_group()


def whole_sequence(options: argparse.Namespace, total: int) -> list[torch.Tensor]:
    """q, k and v of the whole sequence, the same on every rank."""
    random = torch.Generator().manual_seed(0)
    heads = (options.heads, options.kv_heads, options.kv_heads)
    return [
        torch.randn(1, h, total, options.head_dim, generator=random).to("cuda", torch.bfloat16)
        for h in heads
    ]


def rms_error(
    y: torch.Tensor,
    q: torch.Tensor,
    whole_k: torch.Tensor,
    whole_v: torch.Tensor,
    positions: torch.Tensor,
) -> float:
    """The rms error of this rank's y against causal attention in float64."""
    group = q.shape[1] // whole_k.shape[1]
    hidden = torch.arange(whole_k.shape[2], device="cuda")[None, :] > positions[:, None]
    total = 0.0
    for h in range(q.shape[1]):
        scores = q[0, h].double() @ whole_k[0, h // group].double().T / q.shape[3] ** 0.5
        exact = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
        exact = exact @ whole_v[0, h // group].double()
        total += (y[0, h].double() - exact).square().sum().item()
    return (total / y.numel()) ** 0.5


if __name__ == "__main__":
    main()
