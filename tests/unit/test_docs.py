"""What the documents claim: a site that builds, the kernel table, links, named tests, extras."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from baracuda_kernels import registry

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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
