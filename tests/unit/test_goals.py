"""Figures of `benchmarks.exchange` beside their goals and floors."""

from __future__ import annotations

import pytest

from benchmarks.across_gpus.goals import Verdict, verdicts


def run(what: str, chunk: int = 8192, *, ranks: int = 2, causal: bool = True, **over: float) -> dict:
    """A row whose time is `over[peer]` times each peer's."""
    params = {"ranks": ranks, "chunk": chunk, "causal": causal, "way": "peer", "what": what}
    peers = {peer: 2.0 / ratio for peer, ratio in over.items()}
    return {"name": "exchange_run", "params": params, "ours": 2.0, "peers": peers}


def words(row: dict) -> list[tuple[str, str]]:
    return [(v.what.partition(": ")[2], v.word) for v in verdicts([row])]


@pytest.mark.parametrize(
    ("percent", "word"), [(97.0, "goal"), (96.9, "floor"), (94.0, "floor"), (93.9, "BELOW")]
)
def test_a_figure_that_rises(percent, word):
    assert Verdict("", percent, 97, 94).word == word


@pytest.mark.parametrize(("ratio", "word"), [(1.02, "goal"), (1.03, "floor"), (1.041, "BELOW")])
def test_a_figure_that_falls(ratio, word):
    assert Verdict("", ratio, 1.02, 1.04).word == word


def test_a_captured_run_has_three_figures():
    row = run("graph", ideal=1 / 0.95, steps=1.0, eager=1.05)
    assert words(row) == [
        ("graph % of ideal", "floor"), ("graph over its own steps", "goal"), ("graph over eager", "BELOW"),
    ]  # fmt: skip
    (of_ideal, *_) = verdicts([row])
    assert of_ideal.found == pytest.approx(95) and (of_ideal.goal, of_ideal.floor) == (97, 94)


def test_rows_have_goals_of_their_own():
    assert words(run("graph", 1024, ideal=2.0, steps=9, eager=9)) == [("graph % of ideal", "floor")]
    assert words(run("eager", 2048, steps=1.06)) == [("eager over its own steps", "floor")]
    assert words(run("eager", 4096, steps=1.06)) == [("eager over its own steps", "BELOW")]
    assert words(run("torch op", 4096, eager=1.03)) == [("torch op over the plan", "floor")]
    assert words(run("torch op", 2048, eager=1.03)) == []
    four = run("graph", ranks=4, ideal=1 / 0.93, steps=1, eager=1)
    assert words(four)[0] == ("graph % of ideal", "floor")
    assert "graph over eager" not in dict(words(run("graph", 2048, ideal=1, steps=1, eager=2)))


@pytest.mark.parametrize(("causal", "ratio"), [(True, 1.34), (False, 1.20)])
def test_context_parallel_is_over_the_plan(causal, ratio):
    row = run("context_parallel", causal=causal, eager=ratio)
    assert words(row) == [("context_parallel over the plan", "floor")]


def test_a_hop_of_33_megabytes():
    params = {"ranks": 2, "chunk": 8192, "causal": True, "way": "peer", "exchange": "peer"}
    row = {"name": "exchange", "params": params | {"bytes": 2**25}, "ours": 310.0, "peers": {}}
    assert words(row) == [("GB/s each way", "floor")]
    assert words(row | {"params": params | {"bytes": 2**24}}) == []
    assert words(row | {"params": params | {"bytes": 2**25, "exchange": "nccl"}}) == []
