"""The order of the contenders within a round of a benchmark."""

import itertools
import time
from collections import Counter

import pytest

from benchmarks.rounds import in_rounds, order, settle, summary


@pytest.mark.parametrize("names", ["ab", "abc", "abcdef"])
def test_nobody_always_follows_the_same_one(names):
    rounds = [order(names, number) for number in range(9)]
    assert all(sorted(order) == list(names) for order in rounds)
    assert rounds == [order(names, number) for number in range(9)]
    for name in names:
        # None: it began the round.
        before = {([None, *order])[order.index(name)] for order in rounds}
        assert len(before - {None}) >= min(2, len(names) - 1), f"{name} always follows {before}"
        assert len(before) >= 2


@pytest.mark.parametrize("names", ["ab", "abc", "abcd", "abcde", "abcdefgh"])
def test_everybody_follows_everybody_else_equally_often(names):
    times = 1 + len(names) % 2
    rounds = [order(names, number) for number in range(times * len(names))]
    pairs = Counter(pair for one in rounds for pair in itertools.pairwise(one))
    assert pairs == dict.fromkeys(itertools.permutations(names, 2), times)
    assert Counter(one[0] for one in rounds) == dict.fromkeys(names, times)


def test_samples_are_as_long_as_asked_and_ratios_are_of_rounds():
    seen = {"slow": [], "quick": [], "other": []}
    of_one = {"slow": 40.0, "quick": 0.02, "other": 2.0}

    def measure(name, count):
        seen[name].append(count)
        clock = 2.0 if len(seen[name]) == 4 else 1.0  # in the second round all run twice as long
        return of_one[name] * clock

    samples = in_rounds(of_one, measure, rounds=3, milliseconds=15, least=2, most=400)
    assert {name: counts[2:] for name, counts in seen.items()} == {
        "slow": [2, 2, 2], "quick": [400, 400, 400], "other": [8, 8, 8]}  # fmt: skip
    assert samples["other"] == [2.0, 4.0, 2.0]
    found = summary({**samples, "other": [4.0, 4.0, 1.0]}, "slow")
    # The medians of the ratios 0.1, 0.05 and 0.025, and not the ratio of the medians.
    assert found == {"ours": 40.0, "peers": {"quick": 0.02, "other": 2.0}}


def test_a_card_settles_under_the_work_of_all_by_turns(monkeypatch):
    monkeypatch.setattr("benchmarks.rounds._SETTLING_SECONDS", 0.02)
    made, begin = [], time.perf_counter()
    settle("abc", made.append)
    assert time.perf_counter() - begin >= 0.02
    assert made == ["abc"[i % 3] for i in range(len(made))] and made
