"""Prefill of a long prompt by a Llama-shaped model whose sequence is sharded across the ranks.

    torchrun --nproc-per-node=8 examples/long_prompt.py --tokens 131072

Each of P ranks holds 1/P of the prompt's activations and of the key/value cache. The logits of the
last token, which pick the first new one, are those of one rank, up to rounding. `--check` also
computes them on one rank alone, and prints the difference. Uses NCCL and a GPU per process, or gloo
on a machine without a GPU.
"""

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from baracuda_kernels.interop import transformers as ring
from baracuda_kernels.interop.torch import position_ids, shard

LAYOUT = "zigzag"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=4096, help="of the whole prompt")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--check", action="store_true", help="also on one rank alone")
    options = parser.parse_args()

    device, dtype = join()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ring.register(sequence_layout=LAYOUT)
    model = random_llama(options).to(device, dtype)
    prompt = torch.randint(32000, (1, options.tokens), generator=torch.Generator().manual_seed(0))

    ids = shard(prompt.to(device), 1, None, LAYOUT)
    rows = position_ids(ids.shape[1], None, LAYOUT, device=device)
    few = position_ids(16, None, LAYOUT, device=device)
    prefill(model, ids[:, :16], few)  # loads kernels first, so their memory is not measured
    before = start_watching(device)
    found = prefill(model, ids, rows)
    working = peak_bytes(device) - before
    cached = cache_bytes(found.past_key_values)

    # The prompt's last token lies on the rank that holds its position, as the last row there.
    holders = [torch.empty_like(rows[-1:]) for _ in range(world_size)]
    dist.all_gather(holders, rows[-1:])
    holder = max(range(world_size), key=lambda r: holders[r].item())
    logits = found.logits[0, -1].float()
    dist.broadcast(logits, holder)
    print(
        f"rank {rank} of {world_size}: {ids.shape[1]} tokens, cache {cached / 2**20:.2f} MiB, "
        f"working memory {working / 2**20:.0f} MiB, next token {logits.argmax().item()}",
        flush=True,
    )
    if options.check and rank == 0:
        model.set_attn_implementation("sdpa")
        with torch.no_grad():
            alone = model(prompt.to(device), logits_to_keep=1).logits[0, -1].float()
        off = (logits - alone).abs().max() / alone.abs().max()
        print(f"logits differ from one rank's alone by {off:.1e}, relative", flush=True)
    dist.barrier()
    dist.destroy_process_group()


@torch.no_grad()
def prefill(model: LlamaForCausalLM, ids: torch.Tensor, rows: torch.Tensor) -> Any:
    """This rank's part: its rows' cache, and the logits of its last row."""
    return model(ids, position_ids=rows.unsqueeze(0), use_cache=True, logits_to_keep=1)


def random_llama(options: argparse.Namespace) -> LlamaForCausalLM:
    """The same random weights on every rank."""
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=2 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(1, options.hidden // 256),
        max_position_embeddings=options.tokens,
        attn_implementation="baracuda_ring",
    )
    return LlamaForCausalLM(config).eval()


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that this rank keeps."""
    return sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))


def start_watching(device: torch.device) -> int:
    """Reset the peak to the memory in use now, which includes the weights; its bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most bytes that were in use at once since `start_watching`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


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
