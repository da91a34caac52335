"""The worker's calls of attention within `context_parallel`, in the forms that programs have."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from baracuda_kernels.errors import BaracudaError
from baracuda_kernels.interop.torch import context_parallel, ring_attention, shard, unshard

_WIDTH, _HEADS = 32, 4
_sdpa = functional.scaled_dot_product_attention


def _written_out(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def _varlen(q, k, v):
    from torch.nn.attention.varlen import varlen_attn

    rows = q.shape[2]
    ends = torch.tensor([0, rows], dtype=torch.int32)
    return varlen_attn(*(x[0].transpose(0, 1) for x in (q, k, v)), ends, ends, rows, rows)


class _Call(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class ContextTasks:
    rank: int

    def within(self, task: dict) -> dict:
        """Relative error of a call within the context, or its typed error."""
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind, function = _form(task["what"])
        rows = 8 * dist.get_world_size()
        wide = {"x": (1, rows, _WIDTH), "qkv": (1, _HEADS, rows, 16)}
        shape, dim = wide[kind], -2
        leading = {"sdpa of 3 dimensions": (_HEADS,), "sdpa of 2 dimensions": (),
                   "sdpa of 5 dimensions": (2, 1, _HEADS)}.get(task["what"])  # fmt: skip
        if leading is not None:
            shape = (*leading, rows, 16)
        whole = [torch.randn(shape) for _ in range(3 if kind == "qkv" else 1)]
        mine = [shard(x, dim) for x in whole]
        if task.get("gradient"):
            return _gradients_within(function, whole, dim)
        mode = torch.inference_mode if task["what"] == "inference mode" else torch.no_grad
        try:
            with mode(), context_parallel():
                y = function(*mine)
        except BaracudaError as error:
            return {"error": type(error).__name__, "message": str(error), "typed": True}
        except Exception as error:
            # TorchScript quotes the message in its own error.
            said = re.search(r"UnsupportedError[:(]+['\"]?([^\n]*)", str(error))
            if said is None:
                raise
            return {"error": "UnsupportedError", "message": said[1], "typed": False}
        with torch.no_grad():
            exact = function(*whole)
        gathered = unshard(y.clone(), dim)
        assert gathered.shape == exact.shape, (gathered.shape, exact.shape)
        off = (gathered - exact).norm() / exact.norm()
        return {"error": "", "message": "", "relative": off.item()}

    def one_refuses(self, task: dict) -> dict:
        q, k, v = torch.randn(3, 1, 4, 8, 16)
        odd = self.rank == task["odd_rank"]
        options: dict[str, Any] = {}
        try:
            if task["what"] in ("a dtype", "a layout", "no tensor"):
                if odd and task["what"] == "a dtype":
                    k = k.double()
                if odd and task["what"] == "no tensor":
                    k = k.numpy()
                if odd and task["what"] == "a layout":
                    options["sequence_layout"] = "spiral"
                ring_attention(q, k, v, **options)
                return {"error": "", "message": ""}
            if odd and task["what"] in ("a mask", "a compiled mask"):
                options["attn_mask"] = torch.ones(8, 8, dtype=torch.bool)
            if odd and task["what"] in ("dropout", "compiled dropout"):
                options["dropout_p"] = 0.5
            if task["what"] == "a dimension of unshard":
                unshard(q, 7 if odd else 2)
            elif task["what"] == "a layout of unshard":
                unshard(q, 2, None, "spiral" if odd else "zigzag")
            elif task["what"] == "no tensor for unshard":
                unshard(q.numpy() if odd else q, 2)
            elif task["what"] == "another call than unshard" and not odd:
                unshard(q, 2)
            call = _sdpa
            if task["what"] in ("a compiled mask", "compiled dropout"):
                call = torch.compile(
                    lambda q, *rest, **options: _sdpa(q * 2, *rest, **options),
                    backend="aot_eager",
                    fullgraph=True,
                )
            with context_parallel():
                if odd and task["what"] == "written out":
                    _written_out(q, k, v)
                call(q, k, v, **options)
        except BaracudaError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "", "message": ""}


def _gradients_within(function: Any, whole: list[torch.Tensor], dim: int) -> dict:
    """Relative error of the inputs' gradients, where the forward alone is within the context."""
    mine = [shard(x, dim).requires_grad_() for x in whole]
    with context_parallel():
        y = function(*mine)
    leaves = [x.clone().requires_grad_() for x in whole]
    exact = function(*leaves)
    assert y.shape == shard(exact, dim).shape, (y.shape, exact.shape)
    weight = torch.randn_like(exact)
    (y * shard(weight, dim)).sum().backward()
    (exact * weight).sum().backward()
    off = [
        (unshard(x.grad, dim) - leaf.grad).norm() / leaf.grad.norm()
        for x, leaf in zip(mine, leaves, strict=True)
    ]
    return {"error": "", "message": "", "relative": max(off).item()}


def _form(what: str) -> tuple[str, Any]:
    """The arguments of the call (x, or q, k and v), and the call."""
    multi_head = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True).eval()
    options = {"batch_first": True, "dim_feedforward": 48}
    layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, **options).eval()
    example = torch.randn(3, 1, _HEADS, 8, 16)
    match what:
        case "sdpa" | "sdpa of 3 dimensions" | "sdpa of 2 dimensions" | "sdpa of 5 dimensions":
            return "qkv", lambda q, k, v: _sdpa(q, k, v)
        case "inference mode" | "aten operator":
            return "qkv", torch.ops.aten.scaled_dot_product_attention
        case "nn.MultiheadAttention":
            return "x", lambda x: multi_head(x, x, x, need_weights=False)[0]
        case "nn.MultiheadAttention, fast path":
            return "x", torch.no_grad()(lambda x: multi_head(x, x, x, need_weights=False)[0])
        case "nn.TransformerEncoderLayer":
            return "x", layer
        case "nn.TransformerEncoderLayer, causal":
            return "x", lambda x: layer(x, _square_mask(x), is_causal=True)
        case "nn.TransformerEncoder":
            return "x", nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        case "nn.TransformerDecoderLayer":
            decoder = nn.TransformerDecoderLayer(_WIDTH, _HEADS, **options).eval()
            return "x", lambda x: decoder(x, 2 * x)
        case "TorchScript":
            return "qkv", torch.jit.script(_scripted_sdpa)
        case "TorchScript, traced":
            return "qkv", torch.jit.trace(lambda q, k, v: _sdpa(q, k, v), tuple(example))
        case "exported":
            return "qkv", _exported(_sdpa, example).module()
        case "exported and decomposed":
            return "qkv", _exported(_sdpa, example).run_decompositions({}).module()
        case "compiled":
            return "qkv", torch.compile(lambda q, k, v: _sdpa(q, k, v) * 2, backend="aot_eager")
        case "function modes off":

            def disabled(x: torch.Tensor) -> torch.Tensor:
                with torch._C.DisableTorchFunction():
                    return multi_head(x, x, x, need_weights=False)[0]

            return "x", disabled
        case "nn.MultiheadAttention with weights":
            return "x", lambda x: multi_head(x, x, x)[0]
        case "nn.MultiheadAttention with add_bias_kv":
            other = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True, add_bias_kv=True).eval()
            return "x", lambda x: other(x, x, x, need_weights=False)[0]
        case "nn.MultiheadAttention with add_zero_attn":
            other = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True, add_zero_attn=True)
            return "x", lambda x: other.eval()(x, x, x, need_weights=False)[0]
        case "nn.MultiheadAttention with padding":
            hidden = torch.zeros(1, 8, dtype=torch.bool)
            hidden[:, -1] = True
            return "x", lambda x: multi_head(x, x, x, hidden, need_weights=False)[0]
        case "scripted nn.TransformerEncoderLayer":
            return "x", torch.jit.script(layer)
        case "fused CPU operator":
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return "qkv", lambda q, k, v: fused(q, k, v)[0]
        case "written out":
            return "qkv", _written_out
        case "written out, scripted":
            return "qkv", torch.jit.script(_scripted_softmax)
        case "written out of 3 dimensions":
            return "qkv", lambda q, k, v: _written_out(*(x.flatten(0, 1) for x in (q, k, v)))
        case "written out, of one row":
            return "qkv", lambda q, k, v: _written_out(q[:, :, -1:], k, v)
        case "written out, exported":
            return "qkv", _exported(_written_out, example).module()
        case "written out, compiled":
            return "qkv", torch.compile(_written_out, backend="aot_eager")
        case "flex_attention":
            from torch.nn.attention.flex_attention import flex_attention

            return "qkv", flex_attention
        case "flex_attention, compiled":
            from torch.nn.attention.flex_attention import flex_attention

            return "qkv", torch.compile(
                lambda q, k, v: flex_attention(q, k, v) * 2, backend="aot_eager", fullgraph=True
            )
        case "varlen_attn":
            return "qkv", _varlen
        case "varlen_attn, compiled":
            return "qkv", torch.compile(_varlen, backend="aot_eager", fullgraph=True)
        case "varlen_attn, function modes off, flops counted":

            def counted(q, k, v):
                with torch._C.DisableTorchFunction(), FlopCounterMode(display=False):
                    return _varlen(q, k, v)

            return "qkv", counted
        case "nn.MultiheadAttention with weights, compiled":
            return "x", torch.compile(lambda x: multi_head(x, x, x)[0], backend="aot_eager")
        case "nn.LSTM" | "nn.GRU":
            recurrent = getattr(nn, what[3:])(_WIDTH, _WIDTH, batch_first=True)
            return "x", lambda x: recurrent(x)[0]
        case "nn.LSTM, packed":
            packed = nn.LSTM(_WIDTH, _WIDTH, batch_first=True)
            pack = nn.utils.rnn.pack_padded_sequence
            return "x", lambda x: packed(pack(x, [x.shape[1]], batch_first=True))[0].data
        case "nn.Conv1d" | "nn.Conv1d, traced":
            convolution = nn.Conv1d(_WIDTH, _WIDTH, 3, padding=1)
            if what.endswith("traced"):
                convolution = torch.jit.trace(convolution, torch.randn(1, _WIDTH, 8))
            return "x", lambda x: convolution(x.transpose(1, 2)).transpose(1, 2)
    raise ValueError(what)


def _scripted_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def _scripted_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * 0.25, -1) @ v


def _square_mask(x: torch.Tensor) -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(x.shape[1])


def _exported(function: Any, example: torch.Tensor) -> Any:
    # It takes any number of rows: it is called with the whole sequence too.
    rows = {2: torch.export.Dim("rows", min=2, max=4096)}
    return torch.export.export(_Call(function), tuple(example), dynamic_shapes=((rows,) * 3,))
