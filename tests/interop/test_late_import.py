"""Attention of modules that are imported within a context is served or refused like any other."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.framework("torch"), pytest.mark.framework("transformers")]

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from baracuda_kernels.errors import UnsupportedError
from baracuda_kernels.interop.torch import context_parallel

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
ids = torch.arange(16).unsqueeze(0)
BEFORE
assert "transformers.modeling_utils" not in sys.modules
with context_parallel(), torch.no_grad():
    from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=32)).eval()
    model.set_attn_implementation("eager")
    try:
        model(ids, position_ids=ids)
    except UnsupportedError as error:  # without the check it would name the softmax
        assert str(error).startswith("attn_implementation: got 'eager'"), error
    else:
        raise AssertionError("the model attended to the local rows")
    model.set_attn_implementation("sdpa")
    found = model(ids, position_ids=ids).logits
with torch.no_grad():
    torch.testing.assert_close(found, model(ids).logits)
assert not any("baracuda" in type(finder).__module__ for finder in sys.meta_path)
dist.destroy_process_group()
"""


VARLEN = """
import sys
import torch
import torch.distributed as dist
from baracuda_kernels.errors import UnsupportedError
from baracuda_kernels.interop.torch import context_parallel

assert "torch.nn.attention.varlen" not in sys.modules  # it takes seconds
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
q, ends = torch.randn(16, 2, 32), torch.tensor([0, 16], dtype=torch.int32)
with context_parallel():
    from torch.nn.attention.varlen import varlen_attn

    def attend(q):
        return varlen_attn(q, q, q, ends, ends, 16, 16)

    for call in (attend, torch.compile(attend, backend="aot_eager")):
        try:
            call(q)
        except UnsupportedError as error:
            assert str(error).startswith("torch_attn::_varlen_attn: got a call"), error
        else:
            raise AssertionError("it attended to the local rows")
dist.destroy_process_group()
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_varlen_attn_is_refused():
    run(VARLEN)


@pytest.mark.parametrize("before", ["import transformers", "with context_parallel(): pass"])
def test_a_model_is_checked(before):
    run(PROGRAM.replace("BEFORE", before))
