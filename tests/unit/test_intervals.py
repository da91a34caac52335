"""Masks as intervals against boolean masks from positions, for every layout and mask."""

import ctypes as ct
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.host_abi import PositionMap
from helpers.ring_abi import build_helper
from hypothesis import given, settings
from hypothesis import strategies as st

from baracuda_kernels.ops.attention._positions import layout_map

UNLIMITED = 2**63 - 1
SOURCES = Path(__file__).parents[2] / "src" / "cuda"


class Interval(ct.Structure):
    _fields_ = [("begin", ct.c_int64), ("end", ct.c_int64)]

    @property
    def members(self):
        return set(range(self.begin, self.end))


class Problem(ct.Structure):
    _fields_ = (
        [(n, ct.c_int64) for n in ("left", "right", "prefix", "chunk")]
        + [("cu_seqlens", ct.POINTER(ct.c_int64)), ("documents", ct.c_int64)]
        + [("q_map", PositionMap), ("k_map", PositionMap)]
        + [("query_len", ct.c_int64), ("key_len", ct.c_int64)]
    )


@cache
def owner():
    sources = (str(SOURCES / "attention" / name) for name in ("interval.cpp", "pair_count.cpp"))
    return ct.CDLL(build_helper("intervals.cpp", f"-I{SOURCES}", "-Wall", *sources))


@pytest.fixture(scope="module", autouse=True)
def compiled():
    owner()  # compiled here, so that the first example is not slow


def positions(layout, rank, ranks, length):
    i = np.arange(length)
    if layout == "striped":
        return i * ranks + rank
    if layout == "contiguous":
        return i + rank * length
    head = (length + 1) // 2
    mirrored = ranks * head + (ranks - 1 - rank) * (length - head)
    return np.concatenate([rank * head + i[:head], mirrored + i[: length - head]])


@st.composite
def masks(draw, total):
    """The fields of a mask, and the key positions that a row position sees, by the table of
    masks."""
    kind = draw(st.sampled_from(
        ["full", "causal", "window", "two-sided", "chunked", "prefix", "documents"]
    ))  # fmt: skip
    extents = st.integers(0, total + 2)
    fields = {"left": UNLIMITED, "right": UNLIMITED, "prefix": 0, "chunk": 0}
    if kind == "full":
        return fields, lambda q, k: np.ones((q.size, k.size), bool)
    if kind == "causal":
        return {**fields, "right": 0}, lambda q, k: k <= q
    if kind == "window":
        w = draw(extents) + 1
        return {**fields, "left": w - 1, "right": 0}, lambda q, k: (q - w < k) & (k <= q)
    if kind == "two-sided":
        left, right = draw(extents), draw(extents)
        two_sided = {**fields, "left": left, "right": right}
        return two_sided, lambda q, k: (q - left <= k) & (k <= q + right)
    if kind == "chunked":
        size = draw(extents) + 1
        chunked = {**fields, "right": 0, "chunk": size}
        return chunked, lambda q, k: (q // size == k // size) & (k <= q)
    if kind == "prefix":
        n = draw(extents)
        return {**fields, "right": 0, "prefix": n}, lambda q, k: (k < n) | (k <= q)
    # Documents may be empty, and positions at both ends may belong to none.
    cuts = sorted(draw(st.lists(st.integers(0, total), min_size=2, max_size=8)))
    document = np.full(total, -1)
    for d, (start, end) in enumerate(pairwise(cuts)):
        document[start:end] = d
    left = draw(st.one_of(st.just(UNLIMITED), extents))
    right = draw(st.one_of(st.just(UNLIMITED), st.just(0), extents))
    low = total if left == UNLIMITED else left
    high = total if right == UNLIMITED else right

    def sees(q, k):
        same = (document[q] == document[k]) & (document[q] >= 0)
        return same & (q - low <= k) & (k <= q + high)

    return {**fields, "left": left, "right": right, "cu_seqlens": cuts}, sees


@st.composite
def problems(draw):
    """The queries of the owner, and their answers by a boolean mask."""
    layout = draw(st.sampled_from(["contiguous", "zigzag", "striped"]))
    ranks = draw(st.integers(1, 8))
    query_len, key_len = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    rank, origin = draw(st.integers(0, ranks - 1)), draw(st.integers(0, ranks - 1))
    fields, sees = draw(masks(ranks * max(query_len, key_len)))
    seen = sees(
        positions(layout, rank, ranks, query_len)[:, None],
        positions(layout, origin, ranks, key_len)[None, :],
    )
    cuts = fields.pop("cu_seqlens", None)
    problem = Problem(**fields, query_len=query_len, key_len=key_len)
    if cuts is not None:
        problem.cu_seqlens = (ct.c_int64 * len(cuts))(*cuts)
        problem.documents = len(cuts) - 1
    problem.q_map = PositionMap(*layout_map(layout, rank, ranks, query_len))
    problem.k_map = PositionMap(*layout_map(layout, origin, ranks, key_len))
    return problem, np.broadcast_to(seen, (query_len, key_len))


def members(flags):
    return set(np.flatnonzero(flags))


def rises(intervals):
    ends = np.array([(i.begin, i.end) for i in intervals])
    return (ends[:, 0] <= ends[:, 1]).all() and (np.diff(ends, axis=0) >= 0).all()


@settings(max_examples=300)
@given(problems())
def test_rows_and_keys(case):
    problem, seen = case
    rows, keys = [Interval() for _ in seen], [Interval() for _ in seen.T]
    for i, row in enumerate(seen):
        owner().keys_of_row(ct.byref(problem), ct.c_int64(i), ct.byref(rows[i]))
        assert rows[i].members == members(row)
    for j, key in enumerate(seen.T):
        owner().rows_of_key(ct.byref(problem), ct.c_int64(j), ct.byref(keys[j]))
        assert keys[j].members == members(key)
    assert rises(rows) and rises(keys)


@settings(max_examples=300)
@given(problems(), st.data())
def test_tiles(case, data):
    problem, seen = case
    first = data.draw(st.integers(0, len(seen) - 1))
    tile = Interval(first, data.draw(st.integers(first + 1, len(seen))))
    some, every = Interval(), Interval()
    owner().keys_of_rows(ct.byref(problem), ct.byref(tile), ct.byref(some), ct.byref(every))
    rows = seen[tile.begin : tile.end]
    assert every.members == members(rows.all(axis=0))
    assert some.members >= members(rows.any(axis=0))
    if rows[0].any() and rows[-1].any():  # only keys between visible ones
        assert some.begin == min(members(rows[0])) and some.end == max(members(rows[-1])) + 1

    first = data.draw(st.integers(0, seen.shape[1] - 1))
    tile = Interval(first, data.draw(st.integers(first + 1, seen.shape[1])))
    owner().rows_of_keys(ct.byref(problem), ct.byref(tile), ct.byref(some))
    keys = seen.T[tile.begin : tile.end]
    assert some.members >= members(keys.any(axis=0))
    if keys[0].any() and keys[-1].any():
        assert some.begin == min(members(keys[0])) and some.end == max(members(keys[-1])) + 1


@settings(max_examples=300)
@given(problems())
def test_chunks(case):
    problem, seen = case
    live = members(seen.any(axis=1))
    rows = Interval()
    assert owner().is_live(ct.byref(problem), ct.byref(rows)) == bool(live)
    assert (rows.begin, rows.end) == ((min(live), max(live) + 1) if live else (0, 0))


@settings(max_examples=300)
@given(problems())
def test_pairs(case):
    problem, seen = case
    blocks = [
        block
        for half in np.split(seen, [min(problem.q_map.split, len(seen))])
        for block in np.split(half, [min(problem.k_map.split, seen.shape[1])], axis=1)
    ]
    whole, cut = ct.c_int64(), ct.c_int64()
    owner().count_pairs(ct.byref(problem), ct.byref(whole), ct.byref(cut))
    assert whole.value == sum(block.size for block in blocks if block.all())
    assert cut.value == sum(block.sum() for block in blocks if not block.all())


@settings(max_examples=300)
@given(problems(), st.integers(1, 5), st.integers(1, 5))
def test_shards_of_any_spacing(case, q_stride, k_stride):
    """Maps of no layout: rows and keys with different strides."""
    problem, _ = case
    problem.cu_seqlens, problem.documents = None, 0
    for positions_of, stride in ((problem.q_map, q_stride), (problem.k_map, k_stride)):
        positions_of.stride = stride
        positions_of.tail = positions_of.head + stride * 20
    q = problem.q_map.positions(problem.query_len)[:, None]
    k = problem.k_map.positions(problem.key_len)[None, :]
    seen = (k >= q - min(problem.left, 10**6)) & (
        (k <= q + min(problem.right, 10**6)) | (k < problem.prefix)
    )
    if problem.chunk:
        seen &= q // problem.chunk == k // problem.chunk
    whole, cut = ct.c_int64(), ct.c_int64()
    owner().count_pairs(ct.byref(problem), ct.byref(whole), ct.byref(cut))
    assert whole.value + cut.value == seen.sum()
    live, rows = members(seen.any(axis=1)), Interval()
    assert owner().is_live(ct.byref(problem), ct.byref(rows)) == bool(live)
    assert rows.members >= live and (not live or min(live) == rows.begin)
