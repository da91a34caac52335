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
            with torch.autocast("cpu", torch.bfloat16, enabled=task.get("autocast", False)):
                call = _with_compiled_layers if task.get("compiled") else None
                found = self._sharded(model, ids, layout, task, call)
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
            case "padding":
                mask = torch.ones_like(ids)
                mask[:, -3:] = 0
                self._sharded(model, ids, layout, task, attention_mask=shard(mask, 1))
            case "decoding":
                self._sharded(model, ids, layout, task, call=_decode)
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
            case "shards of two lengths":
                whole = ids[:, : -dist.get_world_size()] if self.rank == 2 else ids
                self._sharded(model, whole, layout, task)
            case "sliding window":
                self._sharded(_model("qwen2-window"), ids, layout, task)
            case "chunked layers":
                self._sharded(_model("llama4"), ids, layout, task)
            case "a recurrent hybrid":
                self._sharded(_model("qwen3-next"), ids, layout, task)
            case "code of its own":
                self._sharded(_model("gpt-neo"), ids, layout, task)
            case "no position_ids":
                self._sharded(model, ids, layout, task, position_ids=None)
            case "labels":
                self._sharded(model, ids, layout, task, labels=shard(ids, 1))
            case "no position_ids, compiled":
                self._sharded(model, ids, layout, task, call=_compiled, position_ids=None)
            case "labels, compiled":
                self._sharded(model, ids, layout, task, call=_compiled, labels=shard(ids, 1))
            case "spans":
                at = torch.zeros(1, dtype=torch.int64)
                self._sharded(model, ids, layout, task, start_positions=at, end_positions=at)
            case "a pooled row":
                self._sharded(_pooling(), ids, layout, {**task, "use_cache": None})
            case "routers":
                self._sharded(_routed(), ids, layout, task, output_router_logits=True)
            case "a skipped layer":  # on one rank, as layerdrop does
                layer = model.model.layers[1]
                if self.rank == 1:
                    layer.forward = lambda x, **_: x
                try:
                    self._sharded(model, ids, layout, task)
                finally:
                    vars(layer).pop("forward", None)
            case "packed by lengths":
                lengths = torch.tensor([0, 12, 24], dtype=torch.int32)
                packed = {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths}
                self._sharded(model, ids, layout, task, **packed)
            case "generate":
                self._sharded(model, ids, layout, task, call=_generate)
            case "packed positions":
                rows = position_ids(24, None, layout)
                packed = torch.arange(24).remainder(12) if self.rank == 1 else rows
                self._sharded(model, ids, layout, task, position_ids=packed.unsqueeze(0))
            case "positions of another layout":
                other = "zigzag" if layout == "striped" else "striped"
                rows = position_ids(24, None, other).unsqueeze(0)
                self._sharded(model, ids, layout, task, position_ids=rows)
            case "local":  # these positions are right on the first rank of contiguous shards
                rows = torch.arange(24).unsqueeze(0)
                self._sharded(model, ids, layout, task, position_ids=rows)

    def _sharded(
        self,
        model: Any,
        ids: torch.Tensor,
        layout: str,
        task: dict,
        call: Any = None,
        **options: Any,
    ) -> Any:
        mine = shard(ids, 1, None, layout)
        rows = position_ids(mine.shape[1], None, layout, device=ids.device).unsqueeze(0)
        options = {"position_ids": rows, "use_cache": task["use_cache"]} | options
        if task["by"] == "context_parallel":
            model.set_attn_implementation("sdpa")
            with context_parallel(sequence_layout=layout):
                return (call or type(model).__call__)(model, mine, **options)
        from baracuda_kernels.interop import transformers

        transformers.register(sequence_layout=layout)
        model.set_attn_implementation("baracuda_ring")
        return (call or type(model).__call__)(model, mine, **options)

    def _ids(self) -> torch.Tensor:
        torch.manual_seed(3)
        shape = (1, 24 * dist.get_world_size())
        return torch.randint(_SIZES["vocab_size"], shape).to(self.device)


def _routed() -> Any:
    import transformers

    config = transformers.MixtralConfig(**_SIZES, num_local_experts=2, num_experts_per_tok=1)
    return transformers.MixtralForCausalLM(config).eval()


def _pooling() -> Any:
    import transformers

    sizes = {name: _SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    config = transformers.CLIPTextConfig(
        **sizes, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=128
    )
    return transformers.CLIPTextModel(config).eval()


def _generate(model: Any, mine: torch.Tensor, **options: Any) -> Any:
    return model.generate(mine, max_new_tokens=1, position_ids=options["position_ids"])


def _compiled(model: Any, mine: torch.Tensor, **options: Any) -> Any:
    return torch.compile(model, backend="eager")(mine, **options)


def _with_compiled_layers(model: Any, mine: torch.Tensor, **options: Any) -> Any:
    layers = model.model.layers
    for layer in layers:
        layer.compile(backend="eager")
    try:
        return model(mine, **options)
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def _decode(model: Any, mine: torch.Tensor, **options: Any) -> Any:
    cache = model(mine, **options).past_key_values
    return model(mine[:, -1:], position_ids=torch.tensor([[96]]), past_key_values=cache)


@functools.cache
def _model(name: str) -> Any:
    import transformers

    torch.manual_seed(5)
    if name == "llama":
        config, kind = transformers.LlamaConfig(**_SIZES), transformers.LlamaForCausalLM
    elif name == "qwen3":
        config = transformers.Qwen3Config(**_SIZES, head_dim=16)
        kind = transformers.Qwen3ForCausalLM
    elif name == "llama4":
        config = transformers.Llama4TextConfig(
            **_SIZES, attention_chunk_size=8, head_dim=16, num_local_experts=2, pad_token_id=0
        )
        kind = transformers.Llama4ForCausalLM
    elif name == "qwen3-next":
        config = transformers.Qwen3NextConfig(**_SIZES, head_dim=16, num_experts=0)
        kind = transformers.Qwen3NextForCausalLM
    elif name == "gpt-neo":
        sizes = {"vocab_size": 97, "hidden_size": 64, "num_layers": 2}
        config = transformers.GPTNeoConfig(**sizes, num_heads=4, attention_types=[[["global"], 2]])
        kind = transformers.GPTNeoForCausalLM
    else:
        window = {"use_sliding_window": True, "max_window_layers": 0}
        length = {"qwen2-window": 8, "qwen2-long-window": 24 * dist.get_world_size()}.get(name)
        options = window | {"sliding_window": length} if length else {}
        config = transformers.Qwen2Config(**_SIZES, **options)
        kind = transformers.Qwen2ForCausalLM
    return kind(config).eval()
