"""Causal ring attention by one call, one process per rank, checked against PyTorch's own attention.

    torchrun --nproc-per-node=8 examples/pytorch_ring.py

Uses NCCL and a GPU per process, or gloo on a machine without a GPU.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from baracuda_kernels.interop.torch import clear_cache, ring_attention, shard, unshard


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=512, help="rows of each rank")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layout", default="zigzag", choices=["contiguous", "zigzag", "striped"])
    options = parser.parse_args()

    device, dtype = join()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    random = torch.Generator().manual_seed(0)  # the same whole sequence on every rank
    heads = (options.heads, options.kv_heads, options.kv_heads)
    whole = [
        torch.randn(1, h, options.rows * world_size, options.head_dim, generator=random)
        for h in heads
    ]
    whole_q, whole_k, whole_v = (x.to(device, dtype) for x in whole)

    q, k, v = (shard(x, 2, None, options.layout) for x in (whole_q, whole_k, whole_v))
    y = ring_attention(q, k, v, is_causal=True, sequence_layout=options.layout)

    exact = scaled_dot_product_attention(
        whole_q.float(), whole_k.float(), whole_v.float(), is_causal=True, enable_gqa=True
    )
    off = (unshard(y, 2, None, options.layout) - exact).norm() / exact.norm()
    print(f"rank {rank} of {world_size}: {q.shape[2]} rows, relative error {off:.1e}", flush=True)
    clear_cache()  # before the group is destroyed, which the rings use
    dist.destroy_process_group()


def join() -> tuple[torch.device, torch.dtype]:
    """Join torchrun's process group, on this process's GPU if there is one."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu"), torch.float32
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device, torch.bfloat16


if __name__ == "__main__":
    main()
