"""The documents as a whole: a site that builds, links, and what is generated."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import baracuda_kernels as bk

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder, and the output of sphinx."""
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


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_has_a_page_that_shows_it_whole(program):
    page = ROOT / "docs" / "examples" / f"{program.stem}.md"
    (shown,) = re.findall(r"```{literalinclude} (\S+)\n:language: python\n```", page.read_text())
    assert (page.parent / shown).resolve() == program


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.framework("sphinx")
@pytest.mark.timeout(120)
def test_the_reference_has_every_public_name(site):
    """With its arguments. The site is built from the docstrings of the installed package."""
    folder, _ = site
    page = (folder / "api.html").read_text()
    for name in set(bk.__all__) - {"errors", "registry", "__version__"}:
        assert f'id="baracuda_kernels.{name}"' in page or f'errors.{name}"' in page, name
    for module in ("reference", "registry", "predict", "testing"):
        for name in importlib.import_module(f"baracuda_kernels.{module}").__all__:
            if name[0].islower():
                assert f'id="baracuda_kernels.{module}.{name}"' in page, name
    for member in ("ElementKind.BF16", "ArchSku.SM90A", "SequenceLayout.ZIGZAG", "OpCategory.MOE"):
        assert f'id="baracuda_kernels.{member}"' in page, member
    plain = re.sub("<[^>]+>", "", page)
    # As a user writes calls: no self, no C types; constructors of compiled classes too.
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
    """`python docs/write_supported.py` writes the page."""
    assert (ROOT / "docs" / "supported.md").read_text() == supported.page()


def test_what_needs_no_cuda_kernels_on_that_page(supported):
    """Refusals, operands, signatures, expectations of tests, and trials: row by row."""
    page = (ROOT / "docs" / "supported.md").read_text()
    for heading, rows in supported.OTHERS.items():
        found = rows()
        assert len(found) > 4, heading
        assert supported.section(heading, found) in page, heading


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


def test_pages_and_commands_that_are_named_exist():
    """In docstrings, errors and help: pages that were renamed; on the pages: commands."""
    from baracuda_kernels.cli import main

    for source in [*(ROOT / "baracuda_kernels").rglob("*.py"), *(ROOT / "src").rglob("*.py*")]:
        for page in re.findall(r"docs/[\w/-]+\.md", source.read_text()):
            assert (ROOT / page).exists(), f"{source}: {page}"
    for page in PAGES:
        for command in re.findall(r"(?:baracuda-kernels|-m baracuda_kernels) ([a-z]\w*)", page.read_text()):
            assert command in main.commands, f"{page}: {command}"
    # Where install.md says which commands refuse without CUDA kernels.
    refusing = re.search(r"`(\w+)` and `(\w+)` refuse to answer", (ROOT / "docs/install.md").read_text())
    assert refusing is not None and set(refusing.groups()) <= set(main.commands)
