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
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder, and what sphinx said."""
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", folder],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    return folder, result


@pytest.mark.framework("sphinx")
@pytest.mark.timeout(120)
def test_the_site_builds_without_a_warning(site):
    folder, result = site
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr, result.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        assert (folder / page.relative_to(ROOT / "docs")).with_suffix(".html").exists(), page.name


@pytest.mark.framework("sphinx")
@pytest.mark.timeout(120)
def test_the_changelog_and_the_examples_are_on_the_site(site):
    folder, _ = site
    changes = (folder / "changelog.html").read_text()
    assert "Unreleased" in changes and "RingTimeline" in changes
    first = (folder / "index.html").read_text()
    for program in EXAMPLES:
        page = f"examples/{program.stem}.html"
        assert "baracuda" in (folder / page).read_text() and f'href="{page}"' in first, page


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_has_a_page_that_shows_it_whole(program):
    page = ROOT / "docs" / "examples" / f"{program.stem}.md"
    (shown,) = re.findall(r"```{literalinclude} (\S+)\n:language: python\n```", page.read_text())
    assert (page.parent / shown).resolve() == program


def test_the_kernel_table_is_the_registry():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", README, flags=re.MULTILINE)
    table = [(family, set(elements.strip().split(", "))) for family, elements in rows]
    known: dict[str, set] = {}
    for op, family, sku in registry.named_skus():
        if op == "ring_attention" and sku.direction.name == "FORWARD":
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
        named |= set(re.findall(r"`((?:unit|gpu|multi_rank|interop)/\w+\.py)(?:::(\w+))?`", text))
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
    """Every row of its table is a row of the performance page, by the same columns."""
    page = (ROOT / "docs" / "performance.md").read_text()
    number = r"([\d.]+|–)"
    kinds = ["one call", "gradients", "ring", "training"]
    rows = re.findall(rf"^\| ({'|'.join(kinds)}), ([^|]+) \| " + r" \| ".join([number] * 7)
                      + r" \|$", README, re.MULTILINE)  # fmt: skip
    assert [kind for kind, *_ in rows] == [kinds[0]] * 2 + [kinds[1]] * 2 + [kinds[2]] * 3 + [
        kinds[3]] * 2  # fmt: skip
    alone = page.split("## NVIDIA H100 80GB HBM3")[1].split("### ")
    for kind, what, tflops, ideal, fa2, fa3, cudnn, context_parallel, all_gather in rows:
        if kind in kinds[:2]:
            causal = {"causal": "yes", "no mask": "no"}[what.rpartition(", ")[2]]
            assert what.startswith("H100, 2 x 8192 rows, 16 heads, ")
            fast = "" if kind == "one call" else r"fast \| "
            row = rf"^\| sm90a \| bf16 \| 128 \| 2 \| 16/16 \| 8192 \| {causal} \| {fast}[\d.]+ \| "
            row += re.escape(tflops) + "".join(
                rf" \| {re.escape(peer)} / [\d.]+" for peer in (fa2, cudnn, fa3))  # fmt: skip
            of = alone[1 + kinds.index(kind)]
            assert {ideal, context_parallel, all_gather} == {"–"}
        else:
            rings = r"(\d) (H\d00), (\d+) rows each, causal"
            gpus, card, length = re.fullmatch(rings, what).groups()
            row = rf"^\| {gpus} \| {length} \| zigzag \| yes \| "
            across = page.split(f"## Across GPUs: NVIDIA {card}")[1]
            if kind == "ring":
                row += r"(?:peer|nccl) \| \d \| [\d.]+ \| " + re.escape(f"{tflops} | {ideal} | ")
                row += r"[\d.]+ \| [\d.–]+ \| " + re.escape(f"{context_parallel} | {all_gather}")
                of = across.split("### Speed")[1].split("### ")[0]
            else:
                row += r"[\d.]+ \| [\d.]+ \| [\d.–]+ \| "
                row += re.escape(f"{ideal} | {context_parallel} | ")
                of = across.split("### Training")[1].split("### ")[0]
            assert {fa2, fa3, cudnn} == {"–"}
        assert re.search(row, of, re.MULTILINE), what


def test_nothing_is_installed_from_where_it_is_not():
    """The package is on no index: its extras are those of a clone, in pages and in messages."""
    sources = [path for folder in ("baracuda_kernels", "src", "examples")
               for path in (ROOT / folder).rglob("*.py*") if path.suffix in (".py", ".pyx")]
    assert len(sources) > 80
    for page in [*PAGES, *sources]:
        found = re.search(r"pip install '?baracuda|baracuda[-_]kernels\[\w", page.read_text())
        assert not found, page.name


@pytest.mark.framework("sphinx")
@pytest.mark.timeout(120)
def test_the_reference_has_every_public_name(site):
    """With its arguments; the site is built from the docstrings of this very package."""
    folder, _ = site
    page = (folder / "api.html").read_text()
    for name in set(bk.__all__) - {"errors", "registry", "__version__"}:
        assert f'id="baracuda_kernels.{name}"' in page or f'errors.{name}"' in page, name
    for module in ("reference", "registry", "scaling"):
        for name in importlib.import_module(f"baracuda_kernels.{module}").__all__:
            if name[0].islower():
                assert f'id="baracuda_kernels.{module}.{name}"' in page, name
    for member in ("ElementKind.BF16", "ArchSku.SM90A", "SequenceLayout.ZIGZAG", "OpCategory.MOE"):
        assert f'id="baracuda_kernels.{member}"' in page, member
    plain = re.sub("<[^>]+>", "", page)
    # As one writes them: no self, no C types, and the constructors of compiled classes, too.
    for call in ("run(stream, comm, args, *, timeline=None)", "from_mpi(comm, *, device=None, ",
                 "RingAttentionDescriptor(batch_size, num_heads, query_len, key_len, head_dim, "):
        assert call in plain, call
    assert "(self" not in plain


@pytest.fixture
def supported(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("write_supported")


@pytest.mark.skipif(not bk._build_info()["cuda_built"],
                    reason="capability: CUDA kernels in the build")  # fmt: skip
def test_the_page_of_what_is_supported_is_the_registrys(supported):
    """`python docs/write_supported.py` writes it anew."""
    assert (ROOT / "docs" / "supported.md").read_text() == supported.page()


def test_what_needs_no_cuda_kernels_on_that_page(supported):
    """Refusals, operands, signatures, what tests expect, what was tried: row by row."""
    page = (ROOT / "docs" / "supported.md").read_text()
    for heading, rows in supported.OTHERS.items():
        found = rows()
        assert len(found) > 4, heading
        assert supported.section(heading, found) in page, heading


def test_no_sentence_of_that_page_is_typed_in(supported):
    """Headings, tables and links: a claim that nothing holds would be a line of its own."""
    page = (ROOT / "docs" / "supported.md").read_text().partition("-->")[2]
    headings = [f"## {heading}" for heading in supported.OF_KERNELS | supported.OTHERS]
    prose = [line for line in page.splitlines() if line and not line.startswith("|")]
    assert [line for line in prose if line not in headings] == [
        "Row by row: [what context_parallel catches](context-parallel.md)."
    ]


def test_refusals_are_read_from_tests(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    module = importlib.import_module("refusals_in_tests")
    monkeypatch.setattr(module, "TESTS", tmp_path)
    (tmp_path / "some.py").write_text("""
@pytest.mark.parametrize(("x", "says"), [(1, "x: got 1"), (2, r"x: got \\(2.*odd")])
def test_one(x, says):
    with pytest.raises(bk.InvalidProblemError, match=says):
        call(x)
    with pytest.raises(ValueError, match="of another library"):
        call(x)
def test_none():
    call(3)
""")
    assert list(module.refusals("some.py")) == [
        ("test_one", "InvalidProblemError", ["x: got 1", "x: got (2 … odd"])
    ]
