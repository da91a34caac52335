"""The worker's models: random weights from transformers' config classes, nothing downloaded."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels.errors import BaracudaError
from baracuda_kernels.interop.torch import context_parallel, position_ids, shard, unshard

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


class TransformersTasks:
    rank: int
    device: torch.device

    def logits(self, task: dict) -> dict:
        """Largest difference of the ring's logits from those of one process, relative to them."""
        ids, layout = self._ids(), task["layout"]
        model = _model(task["model"]).to(self.device, getattr(torch, task["dtype"]))
        with torch.no_grad():
            model.set_attn_implementation("sdpa")
            exact = model(ids, use_cache=False).logits
            found = self._sharded(model, ids, layout, task)
        cached = found.past_key_values.get_seq_length() if task["use_cache"] else None
        off = (unshard(found.logits, 1, None, layout) - exact).abs().max() / exact.abs().max()
        return {"off": off.item(), "cached_rows": cached}

    def refused(self, task: dict) -> dict:
        """The typed error of a call that cannot be served."""
        ids, layout = self._ids(), task["layout"]
        try:
            with torch.no_grad():
                self._refused_call(task, ids, layout)
        except BaracudaError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "", "message": ""}

    def _refused_call(self, task: dict, ids: torch.Tensor, layout: str) -> None:
        model = _model("llama")
        match task["what"]:
            case "mask within context_parallel":
                self._sharded(model, ids, layout, task)
            case "padding":
                mask = torch.ones_like(ids)
                mask[:, -3:] = 0
                self._sharded(model, ids, layout, task, attention_mask=shard(mask, 1))
            case "decoding":
                found = self._sharded(model, ids, layout, task)
                cache, last = found.past_key_values, torch.tensor([[ids.shape[1]]])
                model(ids[:, -1:], position_ids=last, past_key_values=cache)
            case "dropout":
                model.train()
                for layer in model.model.layers:
                    layer.self_attn.attention_dropout = 0.1
                try:
                    self._sharded(model, ids, layout, task)
                finally:
                    model.eval()
            case "another mask":
                rows = ids.shape[1] // dist.get_world_size()
                mask = torch.ones(1, 1, rows, rows, dtype=torch.bool)
                self._sharded(model, ids, layout, task, attention_mask=mask)
            case "gradient":
                with torch.enable_grad():
                    self._sharded(model, ids, layout, task).logits.sum().backward()
            case "shards of two lengths":
                whole = ids[:, : -dist.get_world_size()] if self.rank == 2 else ids
                self._sharded(model, whole, layout, task)
            case "sliding window":
                self._sharded(_model("qwen2-window"), ids, layout, task)

    def _sharded(
        self, model: Any, ids: torch.Tensor, layout: str, task: dict, **options: Any
    ) -> Any:
        mine = shard(ids, 1, None, layout)
        rows = position_ids(mine.shape[1], None, layout, device=ids.device).unsqueeze(0)
        options |= {"position_ids": rows, "use_cache": task["use_cache"]}
        if task["by"] == "context_parallel":
            model.set_attn_implementation("sdpa")
            with context_parallel(sequence_layout=layout):
                return model(mine, **options)
        from baracuda_kernels.interop import transformers

        transformers.register(sequence_layout=layout)
        model.set_attn_implementation("baracuda_ring")
        return model(mine, **options)

    def _ids(self) -> torch.Tensor:
        torch.manual_seed(3)
        shape = (1, 24 * dist.get_world_size())
        return torch.randint(_SIZES["vocab_size"], shape).to(self.device)


@functools.cache
def _model(name: str) -> Any:
    import transformers

    torch.manual_seed(5)
    if name == "llama":
        config, kind = transformers.LlamaConfig(**_SIZES), transformers.LlamaForCausalLM
    elif name == "qwen3":
        config = transformers.Qwen3Config(**_SIZES, head_dim=16)
        kind = transformers.Qwen3ForCausalLM
    else:
        window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
        options = window if name == "qwen2-window" else {}
        config = transformers.Qwen2Config(**_SIZES, **options)
        kind = transformers.Qwen2ForCausalLM
    return kind(config).eval()
