"""The order of the contenders within a round of a benchmark."""

import pytest

timing = pytest.importorskip("benchmarks.timing", exc_type=ImportError)  # it needs torch


@pytest.mark.parametrize("names", ["ab", "abc", "abcdef"])
def test_nobody_always_follows_the_same_one(names):
    rounds = [timing.order(names, number) for number in range(timing.ROUNDS)]
    assert all(sorted(order) == list(names) for order in rounds)
    assert rounds == [timing.order(names, number) for number in range(timing.ROUNDS)]
    for name in names:
        # None: it began the round.
        before = {([None, *order])[order.index(name)] for order in rounds}
        assert len(before - {None}) >= min(2, len(names) - 1), f"{name} always follows {before}"
        assert len(before) >= 2
