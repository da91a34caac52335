"""The pages on PyTorch and transformers, and their examples, run as a user would run them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.framework("torch")

ROOT = Path(__file__).parent.parent.parent


def torchrun(script, *arguments, ranks, folder):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, f"--nproc-per-node={ranks}", str(script), *arguments],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


def program(page):
    text = (ROOT / "docs" / page).read_text()
    return "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))


@pytest.mark.parametrize(
    "page",
    [
        "pytorch.md",
        "coming-from.md",
        pytest.param("transformers.md", marks=pytest.mark.framework("transformers")),
    ],
)
def test_the_blocks_of_a_page_are_a_program(tmp_path, page):
    script = tmp_path / "page.py"
    script.write_text(program(page))
    torchrun(script, ranks=2, folder=tmp_path)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_pytorch_ring(tmp_path, layout):
    example = ROOT / "examples" / "pytorch_ring.py"
    printed = torchrun(
        example, "--rows", "96", "--layout", layout, ranks=2, folder=tmp_path
    )
    errors = re.findall(r"rank \d of 2: 96 rows, relative error (\S+)", printed)
    assert len(errors) == 2 and all(float(e) < 1e-2 for e in errors)


@pytest.mark.framework("transformers")
def test_a_long_prompt_takes_a_share_of_the_memory(tmp_path):
    example, arguments = ROOT / "examples" / "long_prompt.py", ["--tokens", "2048", "--check"]
    cache, working, token = {}, {}, {}
    for ranks in (1, 2, 4):
        printed = torchrun(example, *arguments, ranks=ranks, folder=tmp_path)
        pattern = r"cache (\S+) MiB, working memory (\d+) MiB, next token (\d+)"
        found = re.findall(pattern, printed)
        assert len(found) == ranks, printed
        (cache[ranks],) = {float(c) for c, _, _ in found}
        working[ranks] = max(int(w) for _, w, _ in found)
        (token[ranks],) = {t for _, _, t in found}
        (off,) = re.findall(r"differ from one rank's alone by (\S+),", printed)
        assert float(off) < 1e-5
    assert cache[1] == 2 * cache[2] == 4 * cache[4]
    # What a call of a library takes once does not fall, so this bound is looser.
    assert working[2] < 0.75 * working[1] and working[4] < 0.5 * working[1], working
    assert len(set(token.values())) == 1
