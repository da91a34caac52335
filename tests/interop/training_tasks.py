"""The worker's training over rings: batches cut by `BatchSharder`, against the whole on one rank."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from baracuda_kernels.errors import BaracudaError
from baracuda_kernels.interop.torch import context_parallel, position_ids

_NAME = "trained_ring"
_SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
IGNORED = -100


class TrainingTasks:
    rank: int

    def sharded_loss(self, task: dict) -> dict:
        """The loss of a step of several batches, and transformers' loss of the whole batches."""
        from baracuda_kernels.interop.transformers import BatchSharder

        model, sharder, mesh = sharder_of(task)
        steps = batches_of(task["rows"], mesh.size(0))
        mine = [of_rank(batch, mesh) for batch in steps]
        with torch.no_grad(), contextlib.ExitStack() as context:
            if task.get("by") == "context_parallel":
                model.set_attn_implementation("sdpa")
                context.enter_context(context_parallel(mesh["cp"], sequence_layout=task["layout"]))
                sharder = BatchSharder(model, mesh["dp"])
            parts = [sharder.shard(batch) for batch in mine]
            count = sharder.count(parts)
            loss = sum(sharder.loss(*call(model, part), count) for part in parts)
            found = sharder.total(loss)
            context.close()
            exact, targets = whole_loss(model, steps, mesh.size(0))
        return {
            "loss": found.item(),
            "exact": exact.item(),
            "count": count.item(),
            "targets": targets,
            "rows": parts[0]["input_ids"].shape[1],
        }

    def model_gradients(self, task: dict) -> dict:
        """The largest relative difference of a parameter's gradient from that on one rank."""
        model, _, mesh = sharder_of(task)
        sharder = _with_sums(model, mesh)
        steps = batches_of(task["rows"], mesh.size(0))
        parts = [sharder.shard(of_rank(batch, mesh)) for batch in steps]
        count = sharder.count(parts)
        losses = [sharder.loss(*call(model, part), count) for part in parts]
        sum(losses).backward()
        found = {name: x.grad for name, x in model.named_parameters()}
        for gradient in found.values():
            dist.all_reduce(gradient)
        loss = sharder.total(sum(losses).detach())
        model.zero_grad()
        exact, _ = whole_loss(model, steps, mesh.size(0))
        exact.backward()
        off = {name: relative(found[name], x.grad) for name, x in model.named_parameters()}
        return {"off": off, "loss": loss.item(), "exact": exact.item()}

    def optimizer_steps(self, task: dict) -> dict:
        """Losses and parameters of clipped steps under DistributedDataParallel, and on one rank."""
        model, sharder, mesh = sharder_of(task)
        alone = small_model(task["model"])
        replicated = DistributedDataParallel(model)
        optimizers = [torch.optim.SGD(m.parameters(), 0.5, 0.9) for m in (model, alone)]
        losses, norms = [], []
        for step in range(task["steps"]):
            batches = batches_of(task["rows"] - step, mesh.size(0), seed=step)
            parts = [sharder.shard(of_rank(batch, mesh)) for batch in batches]
            count = sharder.count(parts)
            total = torch.zeros(())
            for part in parts:
                last = part is parts[-1]
                with contextlib.nullcontext() if last else replicated.no_sync():
                    loss = sharder.loss(*call(replicated, part), count)
                    loss.backward()
                total += loss.detach()
            exact, _ = whole_loss(alone, batches, mesh.size(0))
            exact.backward()
            losses.append([sharder.total(total).item(), exact.item()])
            norms.append([])
            for one, optimizer in zip((model, alone), optimizers, strict=True):
                norm = torch.nn.utils.clip_grad_norm_(one.parameters(), task["clip"])
                norms[-1].append(norm.item())
                optimizer.step()
                optimizer.zero_grad()
        return {"losses": losses, "norms": norms, "off": parameters_off(model, alone)}

    def refused_batch(self, task: dict) -> dict:
        """The typed error of a batch that cannot be cut, on every rank."""
        from baracuda_kernels.interop.transformers import BatchSharder, register

        model, sharder, mesh = sharder_of(task)
        batch = of_rank(batches_of(24, mesh.size(0))[0], mesh)
        try:
            match task["what"]:
                case "packed positions":
                    if self.rank == 1:  # the others raise its error
                        batch["position_ids"] = torch.arange(24).remainder(12).expand(2, 24)
                case "cu_seq_lens":
                    batch["cu_seq_lens_q"] = torch.tensor([0, 12, 24])
                case "left padding":
                    batch["attention_mask"] = batch["attention_mask"].flip(1)
                case "a mask of packed sequences":
                    batch["attention_mask"] = torch.arange(24).div(12).long().add(1).expand(2, 24)
                case "targets that the mask hides":
                    batch["labels"] = batch["input_ids"]
                case "an unknown tensor":
                    batch["token_weights"] = torch.ones(2, 24)
                case "no sequences":
                    batch = {name: x[:0] for name, x in batch.items()}
                case "a target beyond the vocabulary":
                    batch["labels"][0, 3] = 61
                case "a target below the vocabulary":
                    batch["labels"][0, 23] = -1
                case "a token beyond the vocabulary":
                    batch["input_ids"][0, 3] = 61
                case "tokens that are no integers":
                    batch["input_ids"] = batch["input_ids"] > 3
                case "a sparse tensor on one rank":
                    if self.rank == 1:
                        batch["labels"] = batch["labels"].to_sparse()
                case "no values on one rank":
                    if self.rank == 1:
                        batch["labels"] = batch["labels"].to("meta")
                case "a gradient that broadcast would lose":
                    sharder = BatchSharder(model, mesh["dp"], broadcast=True)
                    ids = batch.pop("input_ids")
                    batch["inputs_embeds"] = model.get_input_embeddings()(ids)
                case "a batch that cannot be sent":
                    sharder = BatchSharder(model, mesh["dp"], broadcast=True)
                    batch = iter(batch)
                case "a worker of a DataLoader":
                    loader = DataLoader([batch], None, num_workers=1, collate_fn=sharder.shard)
                    next(iter(loader))
                case "a batch that cannot be read on one rank":
                    if self.rank == 1:
                        batch = _Unreadable(batch)
                case "lists":
                    batch["input_ids"] = batch["input_ids"].tolist()
                case "another batch on one rank":
                    if self.rank == 1:
                        batch["input_ids"] = batch["input_ids"].add(1).remainder(61)
                case "another length on one rank":
                    if self.rank == 1:
                        batch = {name: x[:, :-4] for name, x in batch.items()}
                case "a length that does not divide":
                    sharder = BatchSharder(model, mesh["dp"], pad=False)
                    batch = {name: x[:, :-1] for name, x in batch.items()}
                case "no room for padding":
                    model = small_model("gpt2")
                    model.set_attn_implementation(_NAME)
                    sharder = BatchSharder(model, mesh["dp"])
                    batch = {name: x[:, :-1] for name, x in batch.items()}
                case "a window":
                    model.config.sliding_window, model.config.layer_types = 8, ["sliding_attention"]
                case "no data group":
                    BatchSharder(model)
                case "a data group within the ring":
                    sharder = BatchSharder(model, mesh["cp"])
                case "a data group with a ring":
                    sharder = BatchSharder(model, _own_group([[0, 1, 2], [3]]))
                case "data groups of two sizes in a ring":
                    sharder = BatchSharder(model, _own_group([[0, 2], [1], [3]]))
                case "rings of two sizes in a data group":
                    register(_own_group([[0, 1], [2], [3]]), name=_NAME)
                case "a model without a ring":
                    model.set_attn_implementation("sdpa")
                    BatchSharder(model, mesh["dp"])
                case "no labels":
                    del batch["labels"]
                    sharder.count([sharder.shard(batch)])
                case "rows of another part":
                    part = sharder.shard(batch)
                    sharder.loss(torch.zeros(2, 3, 61), part["shift_labels"], 1)
            sharder.shard(batch)
        except (BaracudaError, OSError) as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "", "message": ""}

    def broadcast_batch(self, task: dict) -> dict:
        """Whether all of a ring have the rows of its first rank's batch."""
        from baracuda_kernels.interop.transformers import BatchSharder

        model, _, mesh = sharder_of(task)
        sharder = BatchSharder(model, mesh["dp"], broadcast=True)
        batch = of_rank(batches_of(24, mesh.size(0))[0], mesh)
        given = batch if mesh.get_local_rank("cp") == 0 else None
        part = sharder.shard(given)
        rows = position_ids(part["input_ids"].shape[1], mesh["cp"], task["layout"])
        return {
            "same": torch.equal(part["input_ids"], batch["input_ids"][:, rows]),
            "positions": torch.equal(part["position_ids"], rows.unsqueeze(0)),
        }


class _Unreadable(dict):
    """A batch whose file has gone."""

    def items(self) -> Any:
        raise OSError("the file has gone")


def sharder_of(task: dict) -> tuple[Any, Any, DeviceMesh]:
    """A model on rings of `cp` ranks, and its sharder."""
    from baracuda_kernels.interop import transformers

    mesh = _mesh(task["cp"])
    transformers.register(mesh["cp"], sequence_layout=task["layout"], name=_NAME)
    model = small_model(task["model"])
    model.set_attn_implementation(_NAME)
    return model, transformers.BatchSharder(model, mesh["dp"]), mesh


@functools.cache
def _mesh(cp: int) -> DeviceMesh:
    shape = (dist.get_world_size() // cp, cp)
    return init_device_mesh("cpu", shape, mesh_dim_names=("dp", "cp"))


def _own_group(groups: list[list[int]]) -> Any:
    """This rank's group of those that all ranks make."""
    made = [dist.new_group(ranks) for ranks in groups]
    return next(x for x, ranks in zip(made, groups, strict=True) if dist.get_rank() in ranks)


def _with_sums(model: Any, mesh: DeviceMesh) -> Any:
    from baracuda_kernels.interop.transformers import BatchSharder

    return BatchSharder(model, mesh["dp"], gradients="sum")


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def parameters_off(model: Any, alone: Any) -> float:
    """The largest relative difference of a parameter."""
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    return max(relative(a.detach(), b.detach()) for a, b in pairs)


def batches_of(rows: int, data_ranks: int, seed: int = 7) -> list[list[dict]]:
    """Two accumulated batches, in each one for every data-parallel rank, of unequal targets."""
    draw = torch.Generator().manual_seed(seed)
    steps = []
    for _ in range(2):
        step = []
        for _ in range(data_ranks):
            ids = torch.randint(61, (2, rows), generator=draw)
            lengths = torch.randint(rows // 2, rows + 1, (2, 1), generator=draw)
            lengths[0] = rows
            mask = (torch.arange(rows) < lengths).long()
            labels = ids.masked_fill(mask == 0, IGNORED)
            labels[torch.rand(2, rows, generator=draw) < 0.3] = IGNORED
            step.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
        steps.append(step)
    return steps


def of_rank(step: list[dict], mesh: DeviceMesh) -> dict:
    return dict(step[mesh.get_local_rank("dp")])


def call(model: Any, part: dict) -> tuple[Any, torch.Tensor]:
    part = dict(part)
    targets = part.pop("shift_labels")
    return model(**part), targets


def whole_loss(model: Any, steps: list[list[dict]], data_ranks: int) -> tuple[torch.Tensor, int]:
    """transformers' own loss of all batches on this rank alone, and the number of targets."""
    model.set_attn_implementation("sdpa")
    batches = [batch for step in steps for batch in step[:data_ranks]]
    targets = sum(int(b["labels"][:, 1:].ne(IGNORED).sum()) for b in batches)
    losses = [model(**b, use_cache=False, num_items_in_batch=targets).loss for b in batches]
    return sum(losses), targets


def small_model(name: str) -> Any:
    import transformers

    torch.manual_seed(5)
    if name == "gpt2":
        sizes = {"vocab_size": 61, "n_positions": 23, "n_embd": 32, "n_layer": 2, "n_head": 4}
        config = transformers.GPT2Config(**sizes)
        return transformers.GPT2LMHeadModel(config)
    if name == "qwen3":
        config = transformers.Qwen3Config(**_SIZES, head_dim=8)
        return transformers.Qwen3ForCausalLM(config)
    if name == "gemma":
        config = transformers.GemmaConfig(**_SIZES, head_dim=16)
        return transformers.GemmaForCausalLM(config)
    if name == "gemma3":
        layers = ["full_attention"] * _SIZES["num_hidden_layers"]
        config = transformers.Gemma3TextConfig(**_SIZES, head_dim=16, layer_types=layers)
        return transformers.Gemma3ForCausalLM(config)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES))
