"""What the documents claim: a site that builds, the kernel table, links, named tests, extras."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import baracuda_kernels as bk
from baracuda_kernels import registry

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder, and what sphinx said."""
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", folder],
        capture_output=True, text=True,
    )  # fmt: skip
    return folder, result


@pytest.mark.framework("sphinx")
@pytest.mark.timeout(120)
def test_the_site_builds_without_a_warning(site):
    folder, result = site
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr, result.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (folder / f"{page.stem}.html").exists(), page.name


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


def test_the_readmes_figures_are_of_the_results():
    """Every row of its two tables is a row of the performance page, by the same columns."""
    page = (ROOT / "docs" / "performance.md").read_text()
    figures = r" \| ([\d.]+)" * 3 + r" \|$"
    calls = re.findall(rf"^\| `(\w+)`, ([\w ]+){figures}", README, re.MULTILINE)
    assert len(calls) == 2
    one_call = page.split("## NVIDIA H100 80GB HBM3")[1].split("### ")[1]
    for family, mask, *figures in calls:
        causal = {"causal": "yes", "no mask": "no"}[mask]
        row = rf"^\| {family} \| bf16 \| 128 \| 2 \| 16/16 \| 8192 \| {causal} \| [\d.]+ \| "
        assert re.search(row + re.escape(" | ".join(figures)), one_call, re.MULTILINE), figures
    rings = re.findall(
        r"^\| (\d) (H\d00), (\d+) rows each \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        README, re.MULTILINE)
    assert len(rings) == 4
    for gpus, card, rows, tflops, ideal, *peers in rings:
        of_card = page.split(f"## Across GPUs: NVIDIA {card}")[1].split("### ")[1]
        row = (rf"^\| {gpus} \| {rows} \| zigzag \| yes \| \d \| [\d.]+ \| {tflops} \| {ideal} \| "
               r"[\d.]+ \| " + re.escape(" | ".join(peers)))
        assert re.search(row, of_card, re.MULTILINE), (gpus, card, rows)


def test_nothing_is_installed_from_where_it_is_not():
    """The package is on no index: its extras are those of a clone."""
    for page in PAGES:
        assert not re.search(r"pip install '?baracuda", page.read_text()), page.name


def test_the_picture_of_the_ring_is_the_scripts(tmp_path):
    pytest.importorskip("matplotlib")
    subprocess.run([sys.executable, ROOT / "docs" / "draw_ring.py", tmp_path], check=True)

    def cells(path):
        return re.findall(r">([^<>]*)</text>", path.read_text())

    drawn = cells(tmp_path / "ring.svg")
    assert drawn == cells(ROOT / "docs" / "ring.svg")
    # Every chunk visits every rank.
    assert all(drawn.count(f"K{origin} V{origin}") == 4 for origin in range(4))


@pytest.mark.framework("sphinx")
@pytest.mark.timeout(120)
def test_the_reference_has_every_public_name(site):
    """With its arguments; the site is built from the docstrings of this very package."""
    folder, _ = site
    page = (folder / "api.html").read_text()
    modules = {"errors", "registry"}
    vocabulary = {"AttentionKind", "EpilogueKind", "LayoutSku"}  # of SKUs alone
    for name in set(bk.__all__) - modules - vocabulary - {"__version__"}:
        assert f'id="baracuda_kernels.{name}"' in page or f'errors.{name}"' in page, name
    for module in ("reference", "registry", "scaling"):
        for name in importlib.import_module(f"baracuda_kernels.{module}").__all__:
            if name[0].islower():
                assert f'id="baracuda_kernels.{module}.{name}"' in page, name
    assert "accumulator_scratch" in page and "sequence_layout" in page


@pytest.fixture
def supported(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("write_supported")


@pytest.mark.skipif(not bk._build_info()["cuda_built"],
                    reason="capability: CUDA kernels in the build")  # fmt: skip
def test_the_page_of_what_is_supported_is_the_registrys(supported):
    """`python docs/write_supported.py` writes it anew."""
    assert (ROOT / "docs" / "supported.md").read_text() == supported.page()


def test_the_refusals_and_calls_on_that_page(supported):
    page = (ROOT / "docs" / "supported.md").read_text()
    rows = [*supported.refusals(), *supported.adapters()]
    assert len(rows) > 8
    for row in rows:
        assert row in page
