"""The pages on PyTorch and transformers, and their examples, under torchrun as for a user."""

import re
import sys

import pytest
from helpers.pages import ROOT, run_page, run_program

pytestmark = pytest.mark.framework("torch")


def torchrun(ranks):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return [*command, f"--nproc-per-node={ranks}"]


def test_the_pytorch_page(tmp_path):
    run_page("pytorch.md", tmp_path, launcher=torchrun(2))


def test_the_page_for_those_who_come_from_elsewhere(tmp_path):
    run_page("coming-from.md", tmp_path, launcher=torchrun(2))


@pytest.mark.framework("transformers")
def test_the_transformers_page(tmp_path):
    run_page("transformers.md", tmp_path, launcher=torchrun(2))


def test_the_readmes_call(tmp_path):
    text = (ROOT / "README.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "interop" in b)
    program = tmp_path / "readme.py"
    program.write_text(block)
    run_program(program, tmp_path, launcher=torchrun(2))


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_pytorch_ring(tmp_path, layout):
    example = ROOT / "examples" / "pytorch_ring.py"
    options = ["--rows", "96", "--layout", layout]
    said = run_program(example, tmp_path, *options, launcher=torchrun(2))
    errors = re.findall(r"rank \d of 2: 96 rows, relative error (\d\.\de-\d\d)", said)
    assert len(errors) == 2 and all(float(error) < 1e-2 for error in errors)


@pytest.mark.framework("transformers")
def test_a_long_prompt_takes_a_share_of_the_memory(tmp_path):
    example = ROOT / "examples" / "long_prompt.py"
    options = ["--tokens", "8192", "--hidden", "256", "--layers", "2", "--check"]
    cache, working, token = {}, {}, {}
    for ranks in (1, 2, 4):
        said = run_program(example, tmp_path, *options, launcher=torchrun(ranks))
        pattern = r"cache (\S+) MiB, working memory (\d+) MiB, next token (\d+)"
        found = re.findall(pattern, said)
        assert len(found) == ranks, said
        (cache[ranks],) = {float(c) for c, _, _ in found}
        working[ranks] = max(int(w) for _, w, _ in found)
        (token[ranks],) = {t for _, _, t in found}
        (off,) = re.findall(r"differ from one rank's alone by (\S+),", said)
        assert float(off) < 1e-5
    assert cache[1] == 2 * cache[2] == 4 * cache[4]
    # The pages of a process also hold what gloo and malloc keep, some 20 MiB either way: so only the
    # widest ratio, with room.
    assert working[4] < 0.6 * working[1], working
    assert len(set(token.values())) == 1
