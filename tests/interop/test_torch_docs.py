"""The pages on PyTorch and transformers, and their examples, as for a user under torchrun.

On a machine without a GPU some are started otherwise (forked.py).
"""

import json
import re

import pytest
from helpers.pages import ROOT, code_blocks, run_on_ranks, run_page, run_program, torchrun

pytestmark = pytest.mark.framework("torch")

# Over gloo whatever the machine has; those over NCCL share the first GPU.
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
OVER_NCCL = {"launcher": torchrun(2, one_gpu=True), "environment": {"NCCL_SOCKET_IFNAME": "lo"}}


def test_the_pytorch_page(tmp_path):
    run_page("pytorch.md", tmp_path, launcher=torchrun(2), environment=NO_GPU)


@pytest.mark.gpu
@pytest.mark.multi_rank
def test_the_pytorch_page_over_nccl(tmp_path):
    run_page("pytorch.md", tmp_path, **OVER_NCCL, timeout=240)


def test_the_page_for_those_who_come_from_elsewhere(tmp_path):
    run_blocks(code_blocks("docs/coming-from.md", "python"), tmp_path)


@pytest.mark.framework("transformers")
def test_the_transformers_page(tmp_path):
    prompt, unmodified, _, _ = code_blocks("docs/transformers.md", "python")
    run_blocks([prompt, unmodified], tmp_path)


@pytest.mark.framework("transformers")
def test_training_in_a_loop_of_ones_own(tmp_path):
    _, _, loop, _ = code_blocks("docs/transformers.md", "python")
    run_blocks([loop], tmp_path)


@pytest.mark.framework("transformers")
@pytest.mark.framework("accelerate")
def test_training_with_trainer(tmp_path):
    *_, trainer = code_blocks("docs/transformers.md", "python")
    program = tmp_path / "trainer_page.py"
    program.write_text(trainer)
    said = run_program(program, tmp_path, launcher=torchrun(2), environment=NO_GPU)
    assert said.count("'grad_norm': ") == 4


def run_blocks(texts, folder):
    """Blocks of a page, as one program of two ranks."""
    program = folder / "page.py"
    program.write_text("\n".join(texts))
    return run_on_ranks(program, folder, ranks=2, environment=NO_GPU)


def test_the_readmes_call(tmp_path):
    (block,) = (b for b in code_blocks("README.md", "python") if '"gloo"' in b)
    program = tmp_path / "readme.py"
    program.write_text(block)
    said = run_program(program, tmp_path, launcher=torchrun(2), environment=NO_GPU)
    # Both ranks write to one pipe: a line of one may end up beside a line of the other.
    for rank in (0, 1):
        assert said.count(f"rank {rank}: (1, 8, 1024, 64)") == 1


CHECK_THE_RING = """
from baracuda_kernels.interop.torch import unshard
q, k, v, y = (unshard(x, 2, sequence_layout="zigzag") for x in (q, k, v, y))
exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
torch.testing.assert_close(y, exact, atol=2e-2, rtol=2e-2)
comm.close()
dist.destroy_process_group()
print("agrees")
"""


@pytest.mark.gpu
@pytest.mark.multi_rank
def test_the_readmes_ring(tmp_path):
    (block,) = (b for b in code_blocks("README.md", "python") if '("nccl")' in b)
    program = tmp_path / "readme.py"
    program.write_text(block + CHECK_THE_RING)
    assert run_program(program, tmp_path, **OVER_NCCL).count("agrees") == 2


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_pytorch_ring(tmp_path, layout):
    example = ROOT / "examples" / "pytorch_ring.py"
    options = ["--rows", "96", "--layout", layout]
    said = run_on_ranks(example, tmp_path, *options, ranks=2, environment=NO_GPU)
    errors = re.findall(r"rank \d of 2: 96 rows, relative error (\d\.\de-\d\d)", said)
    assert len(errors) == 2 and all(float(error) < 1e-2 for error in errors)


@pytest.mark.framework("transformers")
def test_a_long_prompt_takes_a_share_of_the_memory(tmp_path):
    example = ROOT / "examples" / "long_prompt.py"
    options = ["--tokens", "8192", "--hidden", "256", "--layers", "2", "--check"]
    cache, working, token = {}, {}, {}
    for ranks in (1, 4):
        said = run_on_ranks(example, tmp_path, *options, ranks=ranks, environment=NO_GPU)
        pattern = r"cache (\S+) MiB, working memory (\d+) MiB, next token (\d+)"
        found = re.findall(pattern, said)
        assert len(found) == ranks, said
        (cache[ranks],) = {float(c) for c, _, _ in found}
        working[ranks] = max(int(w) for _, w, _ in found)
        (token[ranks],) = {t for _, _, t in found}
        (off,) = re.findall(r"differ from one rank's alone by (\S+),", said)
        assert float(off) < 1e-5
    assert cache[1] == 4 * cache[4]
    # The pages of a process also hold what gloo and malloc keep, some 20 MiB either way: hence 0.6.
    assert working[4] < 0.6 * working[1], working
    assert len(set(token.values())) == 1


@pytest.mark.framework("transformers")
def test_long_contexts_train_as_short_ones(tmp_path):
    """Data-parallel x ring of 4 x 1, 2 x 2 and 1 x 4 ranks: the same losses, or it fails."""
    example = ROOT / "examples" / "train_long_context.py"
    options = ["--steps", "3", "--tokens", "130", "--hidden", "64", "--layers", "2", "--out", "."]
    said = run_on_ranks(example, tmp_path, *options, ranks=4, environment=NO_GPU)
    off = re.findall(r"^CP [24]: loss .* tokens/s, off by (\S+) at most$", said, re.MULTILINE)
    assert len(off) == 2 and all(float(x) < 1e-5 for x in off), said
    curves = json.loads((tmp_path / "f32.json").read_text())["cp"]
    assert [len(curves[cp]["loss"]) for cp in ("1", "2", "4")] == [3, 3, 3]
    assert curves["1"]["loss"][-1] < curves["1"]["loss"][0]
    assert (tmp_path / "f32.png").read_bytes().startswith(b"\x89PNG")
