"""shard, unshard and positions: the three layouts, on any array library."""

import sys
import types

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baracuda_kernels as bk
from baracuda_kernels import positions, shard, unshard

LAYOUTS = ("contiguous", "zigzag", "striped")
layouts = st.sampled_from(LAYOUTS)


@given(layout=layouts, ranks=st.integers(1, 9), length=st.integers(0, 12))
def test_every_row_lies_on_one_rank_and_rises(layout, ranks, length):
    places = [positions(length, r, ranks, layout) for r in range(ranks)]
    assert all(p.dtype == np.int64 and p.shape == (length,) for p in places)
    assert all((np.diff(p) > 0).all() for p in places)
    assert sorted(np.concatenate(places)) == list(range(ranks * length))


def test_positions_by_hand():
    assert positions(3, 1, 2, "contiguous").tolist() == [3, 4, 5]
    assert positions(3, 1, 2, "striped").tolist() == [1, 3, 5]
    # Five rows a rank: heads of three, tails of two, the tails dealt from the back.
    assert positions(5, 0, 2, "zigzag").tolist() == [0, 1, 2, 8, 9]
    assert positions(5, 1, 2, "zigzag").tolist() == [3, 4, 5, 6, 7]


@given(
    layout=layouts,
    ranks=st.integers(1, 8),
    length=st.integers(0, 7),
    dim=st.integers(-3, 2),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.int64]),
)
def test_shard_follows_positions_and_unshard_undoes_it(layout, ranks, length, dim, dtype):
    shape = [2, 3, 2]
    shape[dim] = ranks * length
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    shards = shard(x, ranks, dim=dim, sequence_layout=layout)
    assert len(shards) == ranks
    for r, piece in enumerate(shards):
        expected = np.take(x, positions(length, r, ranks, layout), axis=dim)
        assert piece.dtype == x.dtype and np.array_equal(piece, expected)
    back = unshard(shards, dim=dim, sequence_layout=layout)
    assert back.dtype == x.dtype and np.array_equal(back, x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_by_member_equals_layout_by_name(layout):
    member = bk.SequenceLayout[layout.upper()]
    x = np.arange(24).reshape(1, 1, 12, 2)
    for by_name, by_member in zip(
        shard(x, 3, sequence_layout=layout), shard(x, 3, sequence_layout=member), strict=True
    ):
        assert np.array_equal(by_name, by_member)


@pytest.mark.parametrize("layout", ["contiguous", "striped"])
def test_shards_are_views_where_they_can_be(layout):
    x = np.zeros((1, 1, 8, 2))
    assert all(np.shares_memory(s, x) for s in shard(x, 4, sequence_layout=layout))


def test_uneven_length_names_the_nearest_lengths_that_fit():
    with pytest.raises(bk.errors.InvalidProblemError, match=r"10 rows.* 8 and 12$"):
        shard(np.zeros((1, 1, 10, 2)), 4)
    with pytest.raises(bk.errors.InvalidProblemError, match=r"3 rows.* 4$"):
        shard(np.zeros((1, 1, 3, 2)), 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: shard(np.zeros((1, 1, 4, 2)), 0),
        lambda: shard(np.zeros((1, 1, 4, 2)), 2, sequence_layout="spiral"),
        lambda: shard(np.zeros((4, 2)), 2, dim=2),
        lambda: unshard([]),
        lambda: unshard([np.zeros((1, 1, 4, 2)), np.zeros((1, 1, 3, 2))]),
        lambda: positions(-1, 0, 2),
        lambda: positions(4, 2, 2),
        lambda: positions(4, -1, 2),
        lambda: positions(4, 0, 0),
        lambda: positions(4, 0, 2, "spiral"),
    ],
)
def test_bad_arguments_are_typed_errors(call):
    with pytest.raises(bk.errors.InvalidProblemError):
        call()


def test_a_foreign_library_is_asked_for_its_own_concatenation(monkeypatch):
    """Arrays of torch are joined by torch's own cat, found without importing it."""
    calls = []

    class Tensor:
        def __init__(self, data):
            self.data = data
            self.shape = data.shape

        def __getitem__(self, key):
            return Tensor(self.data[key])

    Tensor.__module__ = "torch"

    def cat(pieces, dim):
        calls.append(dim)
        return Tensor(np.concatenate([p.data for p in pieces], axis=dim))

    fake = types.ModuleType("torch")
    fake.cat = cat
    monkeypatch.setitem(sys.modules, "torch", fake)
    x = Tensor(np.arange(12).reshape(1, 1, 6, 2))
    shards = shard(x, 2, sequence_layout="zigzag")
    assert calls == [2, 2]
    assert shards[1].data[0, 0, :, 0].tolist() == [4, 6, 8]
    assert np.array_equal(unshard(shards, sequence_layout="zigzag").data, x.data)
