"""The pages' pictures: made by the scripts as they stand, and readable where they are shown."""

import importlib
import re

import pytest
from helpers.pages import ROOT

import baracuda_kernels as bk
from baracuda_kernels import scaling

DOCS = ROOT / "docs"
TEXT_WIDTH = 736  # pixels of the site's column of text


@pytest.fixture(scope="module")
def drawing():
    """docs/draw_ring.py and docs/draw_concepts.py."""
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("draw_ring"), importlib.import_module("draw_concepts")


def texts(path):
    return re.findall(r">([^<>]*)</text>", path.read_text())


def test_the_picture_of_the_ring_is_the_scripts(drawing, tmp_path):
    ring, _ = drawing
    ring.draw(tmp_path / "ring.svg")
    drawn = texts(tmp_path / "ring.svg")
    assert drawn == texts(DOCS / "ring.svg")
    # Every chunk visits every rank.
    assert all(drawn.count(f"K{origin} V{origin}") == 4 for origin in range(4))


def test_the_concept_page_is_the_scripts(drawing, tmp_path):
    _, concepts = drawing
    concepts.write(tmp_path)
    assert (tmp_path / "concepts.md").read_text() == (DOCS / "concepts.md").read_text()
    page = (DOCS / "concepts.md").read_text()
    for name in concepts.PICTURES:
        file = f"concepts-{name}.svg"
        assert f"]({file})" in page
        assert texts(tmp_path / file) == texts(DOCS / file), file


def test_what_causal_costs_is_counted(drawing):
    """Against masks of whole attention matrices, and what is known of each layout."""
    _, concepts = drawing
    for layout in concepts.LAYOUTS:
        rows = [bk.positions(8, rank, 4, layout) for rank in range(4)]
        for step, line in enumerate(concepts.pairs(layout, 4, 8)):
            for rank, part in enumerate(line):
                keys = rows[(rank - step) % 4]
                assert part == (keys[None] <= rows[rank][:, None]).sum() / 64
    assert concepts.slowest("contiguous", 8) == pytest.approx(2 - 1 / 8, rel=1e-3)
    assert max(concepts.slowest(layout, 8) for layout in ("zigzag", "striped")) < 1.01


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_where_memory_goes_is_what_plan_says(drawing, ranks):
    _, concepts = drawing
    given = {**concepts.MEMORY, "seq": concepts.MEMORY["tokens"], "ranks": ranks}
    del given["tokens"]
    paper = scaling.rank_memory(scaling.RingProblem(**given, causal=True), in_place=True)
    parts = concepts.memory(ranks)
    assert (parts["q"], parts["y"], parts["k, v"], parts["lse"], parts["scratch A"],
            parts["scratch B"], parts["accumulator"]) == (
        paper.q, paper.y, paper.kv, paper.lse, paper.scratch_a, paper.scratch_b,
        paper.accumulator)  # fmt: skip


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.svg")), ids=lambda p: p.stem)
def test_pictures_can_be_read_at_the_width_of_a_page(path):
    svg = path.read_text()
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    shown = re.findall(
        r'<text style="font-size: ([\d.]+)px;[^"]*?(?:text-anchor: (\w+))?" '
        r'(?:x="([-\d.]+)" y="([-\d.]+)" )?transform="([^"]*)"[^>]*>([^<]*)<', svg
    )  # fmt: skip
    assert len(shown) == svg.count("<text ") > 5
    for size, anchor, x, y, transform, text in shown:
        on_page = float(size) * min(1, TEXT_WIDTH / (width * 4 / 3)) * 4 / 3
        assert on_page >= 9, (text, on_page)
        x, y = (x, y) if x else re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", transform).groups()
        upright = "rotate(-0" in transform
        # A letter is about 0.55 of the font's size wide, in whatever font the reader has.
        along, limit = (float(x), width) if upright else (float(y), height)
        length = 0.55 * float(size) * len(text)
        before = {"middle": length / 2, "end": length}.get(anchor, 0)
        if not upright:  # from below to above
            before = length - before
        assert -1 <= along - before and along - before + length <= limit + 1, text
