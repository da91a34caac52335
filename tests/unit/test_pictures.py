"""The pages' pictures: made by the scripts, of figures that are counted."""

import importlib

import pytest
from helpers.pages import ROOT

import baracuda_kernels as bk
from baracuda_kernels import predict

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def concepts():
    """docs/draw_concepts.py, and the way to what lies beside it."""
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("draw_concepts")


def test_they_are_made_by_the_scripts(concepts, tmp_path):
    importlib.import_module("draw_ring").draw(tmp_path / "ring.svg")
    concepts.write(tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"ring.svg", "concepts.md", *(f"concepts-{x}.svg" for x in concepts.PICTURES)}
    assert made <= {path.name for path in DOCS.iterdir()}


def test_what_causal_costs_is_counted(concepts):
    """Against masks of whole attention matrices, and what is known of each layout."""
    for layout in concepts.LAYOUTS:
        rows = [bk.positions(8, rank, 4, layout) for rank in range(4)]
        for step, line in enumerate(concepts.pairs(layout, 4, 8)):
            for rank, part in enumerate(line):
                keys = rows[(rank - step) % 4]
                assert part == (keys[None] <= rows[rank][:, None]).sum() / 64
    assert concepts.slowest("contiguous", 8) == pytest.approx(2 - 1 / 8, rel=1e-3)
    assert max(concepts.slowest(layout, 8) for layout in ("zigzag", "striped")) < 1.01


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_where_memory_goes_is_what_plan_says(concepts, ranks):
    given = {**concepts.MEMORY, "seq": concepts.MEMORY["tokens"], "ranks": ranks}
    del given["tokens"]
    paper = predict.rank_memory(predict.RingProblem(**given, causal=True), in_place=True)
    assert concepts.memory(ranks) == {
        "q": paper.q, "y": paper.y, "k, v": paper.kv, "lse": paper.lse,
        "scratch A": paper.scratch_a, "scratch B": paper.scratch_b,
        "accumulator": paper.accumulator,
    }  # fmt: skip
