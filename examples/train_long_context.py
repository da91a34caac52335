"""Train a Llama-shaped model on sequences that are sharded across ranks; the loss does not change.

    torchrun --nproc-per-node=4 examples/train_long_context.py
    torchrun --nproc-per-node=8 examples/train_long_context.py --cp 8 --tokens 131072 --batch 1

The text is Python's own language reference (`help("topics")`); its bytes are the tokens. The same
steps are run with rings of 1, 2, 4, ... ranks (`--cp`). If there are several rings at a time, each
trains on its own sequences of the batch. If 1 is among the sizes, the other sizes' losses are
compared with its own: the program fails if the loss of a step differs by more than 1e-4 (`--dtype
f32`) or 1 % (bf16), relative. The curves are written to the folder `--out`, as JSON and as a
picture. Uses NCCL and a GPU per process, or gloo on a machine without a GPU. Needs PyTorch,
transformers and matplotlib.
"""

import argparse
import json
import os
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from baracuda_kernels.interop import transformers as ring

TOLERANCE = {"f32": 1e-4, "bf16": 1e-2}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--cp", type=int, nargs="+", help="ranks of a ring; by default 1, 2, 4, ..."
    )
    parser.add_argument("--tokens", type=int, default=1024, help="of a sequence")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step, over all ranks")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="f32")
    parser.add_argument("--out", type=Path, default=Path("train_long_context"))
    options = parser.parse_args()

    device = join()
    world_size = dist.get_world_size()
    rings = options.cp or [2**i for i in range(world_size.bit_length()) if world_size % 2**i == 0]
    losses, speed = {}, {}
    for cp in rings:
        if world_size % cp or options.batch % (world_size // cp):
            parser.error(
                f"--cp {cp}: {world_size} ranks and {options.batch} sequences do not divide"
            )
        losses[cp], speed[cp] = train(cp, device, options)
    if dist.get_rank() == 0:
        report(losses, speed, options)
    dist.destroy_process_group()


def train(cp: int, device: torch.device, options: argparse.Namespace) -> tuple[list[float], float]:
    """The loss of every step with rings of `cp` ranks, and tokens a second."""
    shape = (dist.get_world_size() // cp, cp)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("dp", "cp"))
    ring.register(mesh["cp"], sequence_layout="zigzag")
    model = random_llama(options).to(device)
    sharder = ring.BatchSharder(model, mesh["dp"])
    replicated = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    text = torch.frombuffer(bytearray("\n".join(topics.values()).encode()), dtype=torch.uint8)

    losses: list[float] = []
    bar = Progress(TextColumn("CP {task.fields[cp]}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("loss {task.fields[loss]:.4f}, {task.fields[speed]:,.0f} tokens/s"),
                   disable=dist.get_rank() != 0)  # fmt: skip
    with bar:
        shown = bar.add_task("", total=options.steps, cp=cp, loss=float("nan"), speed=0.0)
        for step in range(options.steps):
            if step <= 1:  # step 0 loads kernels and connects ranks, and is not timed
                start = time.perf_counter()
            whole = draw(text, step, mesh.get_local_rank("dp"), shape[0], options)
            part = sharder.shard(whole)
            count = sharder.count([part])
            targets = part.pop("shift_labels")
            with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bf16"):
                outputs = replicated(**part)
            loss = sharder.loss(outputs, targets, count)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(sharder.total(loss).item())
            seconds = (time.perf_counter() - start) / max(step, 1)
            speed = options.batch * options.tokens / seconds
            bar.update(shown, advance=1, loss=losses[-1], speed=speed)
    return losses, speed


def draw(
    text: torch.Tensor, step: int, rank: int, ranks: int, options: argparse.Namespace
) -> dict[str, torch.Tensor]:
    """One data-parallel rank's sequences of a step, whose batch is the same for any ranks."""
    places = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - options.tokens, (options.batch,), generator=places)
    mine = starts.chunk(ranks)[rank].tolist()
    ids = torch.stack([text[start : start + options.tokens] for start in mine]).long()
    return {"input_ids": ids, "labels": ids}


def random_llama(options: argparse.Namespace) -> LlamaForCausalLM:
    """The same random weights on every rank, and for every ring."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=max(2, options.hidden // 64),
        num_key_value_heads=max(1, options.hidden // 128),
        max_position_embeddings=options.tokens,
        use_cache=False,
        attn_implementation="baracuda_ring",
    )
    return LlamaForCausalLM(config)


def report(
    losses: dict[int, list[float]], speed: dict[int, float], options: argparse.Namespace
) -> None:
    """Print, write and draw the losses; fail if a ring's are not those of one rank, if known."""
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name not in ("cp", "out")}
    curves = {cp: {"loss": losses[cp], "tokens_per_second": speed[cp]} for cp in losses}
    written = options.out / f"{options.dtype}.json"
    written.write_text(json.dumps({"settings": settings, "cp": curves}, indent=1) + "\n")
    off = {cp: differences(losses[cp], losses[1]) for cp in losses if 1 in losses and cp > 1}
    for cp, found in losses.items():
        line = f"CP {cp}: loss {found[0]:.4f} to {found[-1]:.4f}, {speed[cp]:,.0f} tokens/s"
        print(line + (f", off by {max(off[cp]):.1e} at most" if cp in off else ""))
    picture(losses, off, options)
    for cp, found in off.items():
        if not max(found) <= TOLERANCE[options.dtype]:
            raise SystemExit(f"the loss of CP {cp} is not that of CP 1: off by {max(found):.1e}")


def differences(found: list[float], exact: list[float]) -> list[float]:
    return [abs(a - b) / abs(b) for a, b in zip(found, exact, strict=True)]


def picture(
    losses: dict[int, list[float]], off: dict[int, list[float]], options: argparse.Namespace
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for width, (cp, found) in zip((6, 3.5, 1.5, 1), losses.items(), strict=False):
        left.plot(found, linewidth=width, label=f"CP {cp}")
    for cp, found in off.items():
        color = f"C{list(losses).index(cp)}"
        right.semilogy([x or float("nan") for x in found], ".", color=color, label=f"CP {cp}")
    right.axhline(TOLERANCE[options.dtype], color="gray", linestyle="--", label="tolerance")
    left.set(
        title=f"Loss, {options.dtype}, {options.tokens} tokens", xlabel="step", ylabel="nats a byte"
    )
    right.set(title="Relative difference from CP 1 (0 is not shown)", xlabel="step")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(options.out / f"{options.dtype}.png", dpi=120)


def join() -> torch.device:
    """Join torchrun's process group, on this process's GPU if there is one."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


if __name__ == "__main__":
    main()
