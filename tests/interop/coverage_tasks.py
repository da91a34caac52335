"""The worker's trial of one of transformers' models, of any type, with random weights."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
import torch.distributed as dist

from baracuda_kernels.errors import BaracudaError
from baracuda_kernels.interop.torch import context_parallel, shard, unshard

_ROWS = 16  # of one rank
_SMALL = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8,
    "max_position_embeddings": 128, "moe_intermediate_size": 32, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "shared_expert_intermediate_size": 32, "attention_chunk_size": 8,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
    "v_head_dim": 16, "embedding_size": 64, "d_ff": 96, "ffn_dim": 96, "first_k_dense_replace": 1,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 32,
    "word_embed_proj_dim": 64, "attention_window": 8, "n_inner": 96, "n_positions": 128,
    "type_vocab_size": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 16, "rotary_dim": 16,
}  # fmt: skip
_NO_WINDOWS = {"sliding_window": 128, "attention_chunk_size": 128, "window_size": 128,
               "local_attention": 128, "attention_window": 128}  # fmt: skip
_OF_TYPE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "bloom": {"n_head": 4, "n_layer": 2},
    "zaya": {"num_experts_per_tok": 1},
    "mpt": {"n_heads": 4, "n_layers": 2, "d_model": 64, "max_seq_len": 128},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
}
_MOST_PARAMETERS = 40_000_000


class CoverageTasks:
    rank: int

    def model_type(self, task: dict) -> dict:
        """Whether a model type's result from the ring is right, refused or wrong, or cannot be
        made."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = _built(task["model"], task["windows"])
                ids, positions, exact, moved = _alone(model)
            except Exception as error:  # noqa: BLE001 - a model may fail in any way
                return {"is": "not built", "why": _one_line(error)}
            try:
                with torch.no_grad():
                    found = _on_the_ring(model, ids, positions, task)
            except BaracudaError as error:
                return {"is": "refused", "why": _one_line(error)}
            except Exception as error:  # noqa: BLE001
                return {"is": "fails", "why": f"{type(error).__name__}: {_one_line(error)}"}
        off = ((unshard(found, 1) - exact).norm() / exact.norm()).item()
        if off <= 1e-4 and moved < 1e-3:
            return {"is": "not built", "why": "its last row does not depend on the first one"}
        return {"is": "right" if off <= 1e-4 else "wrong", "why": "", "off": off}


def _built(model_type: str, windows: bool) -> Any:
    import transformers

    config_class = transformers.CONFIG_MAPPING[model_type]
    known = set(vars(config_class())) | set(config_class.attribute_map)
    failure: Exception | None = None
    for other in (
        _OF_TYPE.get(model_type, {}),
        {"num_key_value_heads": 4},
        {"num_hidden_layers": 4},
        {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    ):
        wide = {} if windows else _NO_WINDOWS
        sizes = {name: value for name, value in (_SMALL | other | wide).items() if name in known}
        try:
            model = _random(model_type, config_class(**sizes))
            _alone(model)
            return model
        except Exception as error:  # noqa: BLE001
            failure = failure or error
    raise failure


def _random(model_type: str, config: Any) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto as auto

    names = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | {}
    for mapping in (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES):
        for key, value in mapping.items():
            names.setdefault(key, value)
    name = names[model_type]
    kind = getattr(transformers, name[0] if isinstance(name, tuple) else name)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"{size} parameters with the sizes of this trial")
    torch.manual_seed(5)
    model = kind(config).eval()
    for parameter in model.parameters():  # or some models ignore attention
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def _alone(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    torch.manual_seed(3)
    ids = torch.randint(5, 97, (1, _ROWS * dist.get_world_size()))
    first = next((m.padding_idx + 1 for m in model.modules()
                  if hasattr(m, "create_position_ids_from_input_ids")), 0)  # fmt: skip
    positions = torch.arange(first, first + ids.shape[1]).unsqueeze(0)
    with torch.no_grad():
        exact = _answer(model, ids, positions)
        # Attention must matter: a result that does not depend on the first row shows nothing.
        other = ids.clone()
        other[0, 0] = (other[0, 0] + 1) % 90 + 5
        moved = (_answer(model, other, positions) - exact)[:, -1].norm() / exact[:, -1].norm()
    if not torch.isfinite(exact).all():
        raise ValueError("random weights give no finite answer")
    return ids, positions, exact, moved.item()


def _answer(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    parameters = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "position_ids" in parameters:
        options["position_ids"] = positions
    if "use_cache" in parameters:
        options["use_cache"] = False
    found = model(ids, **options)
    return found.logits if hasattr(found, "logits") else found[0]


def _on_the_ring(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, task: dict
) -> torch.Tensor:
    mine, rows = shard(ids, 1), shard(positions, 1)
    if task["by"] == "context_parallel":
        with context_parallel():
            return _answer(model, mine, rows)
    from baracuda_kernels.interop import transformers

    transformers.register()
    model.set_attn_implementation("baracuda_ring")
    return _answer(model, mine, rows)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
