"""What the documents claim: commands, code, the kernel table, links, named tests."""

import ast
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from baracuda_kernels import registry

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_ci_runs_the_readme_test_command():
    commands = [line for block in code_blocks(README, "sh") for line in block.splitlines()]
    (test_command,) = [c for c in commands if "pytest" in c]
    assert test_command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_first_command_is_understood_by_the_command_line():
    from click.testing import CliRunner

    from baracuda_kernels.cli import main

    first = code_blocks(README, "sh")[0]
    calls = re.findall(r"baracuda-kernels (\w+) ([^&\n]*)", first)
    assert [name for name, _ in calls] == ["sample", "run"]
    for name, arguments in calls:
        options = re.findall(r"--[\w-]+|-o", arguments)
        text = CliRunner().invoke(main, [name, "--help"]).output
        assert all(option in text for option in options), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_are_python(page):
    for block in code_blocks(page.read_text(), "python"):
        ast.parse(textwrap.dedent(block))


def test_the_readme_runs_as_written_on_whole_arrays():
    scope = {}
    exec(code_blocks(README, "python")[1], scope)
    assert scope["y"].shape == (1, 8, 1024, 64) and scope["lse"].shape == (1, 8, 1024)


@pytest.mark.framework("sphinx")
@pytest.mark.timeout(120)
def test_the_site_builds_without_a_warning(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", tmp_path],
        capture_output=True, text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr, result.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / f"{page.stem}.html").exists(), page.name


def test_the_first_page_runs_as_written():
    (block,) = code_blocks((ROOT / "docs" / "index.md").read_text(), "python")
    scope = {}
    exec(block, scope)
    assert scope["y"].shape == (1, 8, 1024, 64)


def test_every_page_with_python_runs_in_the_tests():
    """Pages of their own by run_page; these by tests that need to know what is in them."""
    tests = "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    for page in (ROOT / "docs").glob("*.md"):
        blocks = code_blocks(page.read_text(), "python")
        if blocks and page.name not in ("index.md", "developer-guide.md"):
            assert f'run_page("{page.name}"' in tests, page.name


def test_the_kernel_table_is_the_registry():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", README, flags=re.MULTILINE)
    table = [(family, set(elements.strip().split(", "))) for family, elements in rows]
    known: dict[str, set] = {}
    for op, family, sku in registry.named_skus():
        if op == "ring_attention":
            known.setdefault(family, set()).add(sku.element.name)
    assert table == list(known.items())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_tests_that_the_documents_name_exist():
    named = set()
    for page in PAGES:
        text = page.read_text()
        named |= set(re.findall(r"`((?:unit|gpu|multi_rank)/\w+\.py)(?:::(\w+))?`", text))
    assert len(named) > 8
    for file, function in named:
        source = (ROOT / "tests" / file).read_text()
        assert not function or f"def {function}(" in source, (file, function)


def test_extras_that_install_md_names_exist():
    text = (ROOT / "docs" / "install.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(re.findall(r"`\[(\w+)\]`", text)) <= set(extras)
