"""The deterministic backward of sm80 and sm90a: its order of additions, as the kernel's own header has it.

Blocks draw key tiles and wait for each other's additions. A model of them, with any number of blocks
at work and in any interleaving, must end, and must add in one order.
"""

import ctypes as ct
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.ring_abi import build_helper

BLOCK_M, BLOCK_N = 64, 128  # of most kernels
NO_SUMS, NOBODYS_TURN = 0, 1
SOURCES = Path(__file__).parents[2] / "src" / "cuda"


@cache
def order():
    lib = ct.CDLL(build_helper("backward_order.cpp", f"-I{SOURCES}", "-Wall"))
    lib.order_section.argtypes = [*[ct.c_int64] * 4, ct.c_bool, ct.c_int64]
    lib.order_section.restype = ct.c_int64
    lib.order_draw.argtypes = [*[ct.c_int] * 5, ct.c_bool, ct.POINTER(ct.c_int)]
    lib.order_turn.argtypes = [ct.c_int, ct.c_int, ct.c_int, ct.c_bool, ct.c_int,
                               ct.POINTER(ct.c_uint32)]  # fmt: skip
    lib.order_log2_sums.argtypes = [*[ct.c_int64] * 3, ct.c_int, ct.c_int]
    return lib


def positions(layout, rank, ranks, length):
    i = np.arange(length)
    if layout == "striped":
        return i * ranks + rank
    if layout == "contiguous":
        return i + rank * length
    head = (length + 1) // 2
    mirrored = ranks * head + (ranks - 1 - rank) * (length - head)
    return np.concatenate([rank * head + i[:head], mirrored + i[: length - head]])


def fewest(causal, group):
    """The least number of heads that sm90a mixes."""
    return 2 if causal and group == 1 else 4


class Step:
    """One step: `heads` of K and V, `group` query heads each."""

    def __init__(self, heads, group, rows, keys, head_dim=128, section=None, log2_sums=0,
                 staggers=False):
        """rows, keys: their positions, or how many there are where every row sees every key.

        staggers: without a mask heads begin at query tiles of their own, as on sm80.
        """
        self.causal = not isinstance(rows, int)
        query_len, key_len = (len(rows), len(keys)) if self.causal else (rows, keys)
        self.heads, self.group, self.log2_sums = heads, group, log2_sums
        self.staggers = staggers and not self.causal
        self.query_tiles, self.key_tiles = -(-query_len // BLOCK_M), -(-key_len // BLOCK_N)
        self.section = section or order().order_section(
            heads, group, query_len, head_dim, self.causal, fewest(self.causal, group))
        first_keys = range(0, key_len, BLOCK_N)
        first_rows = np.searchsorted(rows, keys[::BLOCK_N]) if self.causal else [0] * len(first_keys)
        # The first query tile that sees a key tile, counted as in the kernel.
        self.begins = [self.query_tiles if row == query_len else int(row) // BLOCK_M
                       for row in first_rows] + [self.query_tiles] * 2**log2_sums  # fmt: skip

    @property
    def tiles(self):
        return self.heads * self.key_tiles

    def draw(self, n):
        out = (ct.c_int * 3)()
        order().order_draw(n, self.section, self.heads, self.group, self.key_tiles, self.causal, out)
        return out[0], out[1], bool(out[2])

    def turn(self, index, rises, m):
        out = (ct.c_uint32 * 4)()
        next_begin = self.begins[index + 2**self.log2_sums]
        order().order_turn(index, self.log2_sums, next_begin, rises, m, out)
        return bool(out[0]), out[1], out[2], out[3]

    def visits(self, n):
        """(query head, query tile), in the order of the n-th key tile."""
        head, index, rises = self.draw(n)
        tiles = range(self.begins[index], self.query_tiles)
        if self.causal and rises:
            tiles = tiles[::-1]
        if self.staggers:
            first = order().order_first_query_tile(head, self.section, self.query_tiles)
            tiles = [*tiles[first:], *tiles[:first]]
        return [(head * self.group + g, m) for m in tiles for g in range(self.group)]

    def run(self, words, resident, rng, *, come_and_go=False):
        """Blocks at work, one thread of each at a time. Returns who added to each sum, in order.

        come_and_go: a block has one key tile, as on sm80; else they stay and draw again, as on sm90a.
        """
        added = {tile: [] for tile in words}
        counter = 0
        # All blocks of the grid, also blocks that cannot be resident.
        waiting = self.tiles if come_and_go else resident + rng.randrange(3)
        grid = waiting

        def block():
            nonlocal counter
            while True:
                n, counter = counter, counter + 1
                if come_and_go and n == grid - 1:
                    counter = 0
                if n >= self.tiles:
                    if n == self.tiles + grid - 1:
                        counter = 0
                    return
                _, index, rises = self.draw(n)
                landing = []
                for visited in self.visits(n):
                    waits, awaited, left, of_tile = self.turn(index, rises, visited[1])
                    tile = (*visited, of_tile)  # the sum that it adds to
                    # Two buffers: the previous addition may still be in flight.
                    while len(landing) == 2 or waits and words[tile] != awaited:
                        if landing and rng.random() < 0.5:
                            landed = landing.pop(rng.randrange(len(landing)))
                            words[landed[0]] = landed[1]
                            yield True
                        else:
                            yield bool(landing)
                    if not waits:
                        assert words[tile] in (NO_SUMS, NOBODYS_TURN)
                    added[tile].append(n)
                    landing.append((tile, left))
                    yield True
                for tile, left in landing:
                    words[tile] = left
                yield True
                if come_and_go:
                    return

        at_work, idle = [], 0
        while waiting or at_work:
            while waiting and len(at_work) < resident:
                at_work.append(block())
                waiting -= 1
            one = rng.randrange(len(at_work))
            try:
                moved = next(at_work[one])
            except StopIteration:
                at_work.pop(one)
                moved = True
            idle = 0 if moved else idle + 1
            assert idle < 200 * resident, "blocks at work wait for each other"
        assert counter == 0
        return added


SHAPES = {
    "full": lambda n: (n, n - 30),
    "causal": lambda n: (np.arange(n), np.arange(n - 30)),
    "causal, rows that see nothing": lambda n: (np.arange(n), np.arange(n) + n // 3),
    "causal, all is seen": lambda n: (np.arange(n) + n, np.arange(n)),
    "causal, nothing is seen": lambda n: (np.arange(n), np.arange(n) + n),
    **{f"{layout} {q}, {k}": lambda n, layout=layout, q=q, k=k: (
        positions(layout, q, 4, n), positions(layout, k, 4, n))
       for layout in ("zigzag", "striped") for q, k in ((2, 1), (1, 3), (2, 2))},
}  # fmt: skip
HEADS = [(1, 1, None), (5, 1, None), (5, 2, 2), (4, 1, 1), (3, 3, 2)]


@pytest.mark.parametrize("come_and_go", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("log2_sums", [0, 1, 3])  # there are six key tiles: eight sums are too many
@pytest.mark.parametrize(("heads", "group", "section"), HEADS)
def test_any_number_of_blocks_ends_and_adds_in_one_order(
        shape, heads, group, section, log2_sums, come_and_go):
    rng = random.Random(f"{shape} {heads}")
    step = Step(heads, group, *SHAPES[shape](700), section=section, log2_sums=log2_sums,
                staggers=come_and_go)  # fmt: skip
    tiles = [(h, m, s) for h in range(heads * group) for m in range(step.query_tiles)
             for s in range(2**log2_sums)]  # fmt: skip
    seen = {tile: [] for tile in tiles}
    for n in range(step.tiles):
        for tile in step.visits(n):
            seen[*tile, step.draw(n)[1] % 2**log2_sums].append(n)
    words = dict.fromkeys(tiles, NO_SUMS)
    for resident in (1, 2, 3, 7, step.tiles + 2):
        # Steps of one call: each finds the words as the last step left them.
        assert step.run(words, resident, rng, come_and_go=come_and_go) == seen
        assert words == {t: NOBODYS_TURN if seen[t] else NO_SUMS for t in tiles}


@pytest.mark.parametrize(("causal", "group"), [(False, 1), (True, 1), (True, 2)])
@pytest.mark.parametrize(("heads", "key_tiles", "section"),
                         [(1, 1, 1), (33, 7, 7), (16, 64, 8), (7, 3, 7), (5, 2, 1)])  # fmt: skip
def test_every_key_tile_is_drawn_once_and_a_head_in_order(
        causal, group, heads, key_tiles, section):
    length = key_tiles * BLOCK_N
    rows = np.arange(length)
    step = Step(heads, group, *((rows, rows) if causal else (length, length)), section=section)
    drawn = [step.draw(n) for n in range(step.tiles)]
    assert sorted((head, index) for head, index, _ in drawn) == [
        (head, index) for head in range(heads) for index in range(key_tiles)]  # fmt: skip
    last_section = (heads // section - 1) * section
    for head in range(heads):
        indices = [index for h, index, _ in drawn if h == head]
        rises = not causal or group > 1 or head >= last_section
        assert indices == sorted(indices, reverse=not rises)
        assert {r for h, _, r in drawn if h == head} == {rises}


def test_heads_that_are_mixed_begin_evenly_apart():
    first = order().order_first_query_tile
    assert [first(head, 8, 128) for head in (0, 1, 7, 8, 15)] == [0, 16, 112, 0, 112]
    assert [first(head, 3, 2) for head in range(4)] == [0, 0, 1, 0]
    assert first(5, 6, 0) == 0


def test_few_heads_have_several_sums_and_many_have_one():
    def sums(kv_heads, query_len, group=1, share=8, most=3):
        query_tiles = -(-query_len // BLOCK_M)
        return 2 ** order().order_log2_sums(kv_heads, group, query_tiles, share, most)

    assert [sums(heads, 8192) for heads in (1, 2, 4, 8, 16, 2**20)] == [8, 8, 2, 1, 1, 1]
    assert [sums(heads, 8192, share=16, most=2) for heads in (1, 4, 8, 16)] == [4, 4, 1, 1]
    assert sums(4, 32768) == 1 and sums(1, 2**36) == 1
    assert sums(8, 8192, group=4) == 1 and sums(2, 8192, group=4) == 2
    assert sums(8, 4096) == 2 and sums(4, 2048) == 4 and sums(1, 1024) == 2
    assert sums(1, 1) == sums(1, 128) == sums(1, 512) == 1, "no more than a fourth of the key tiles"


def test_sections_are_neither_few_heads_nor_more_than_l2_holds():
    def section(heads, query_len, head_dim, causal, group=1, least=None):
        least = least or fewest(causal, group)
        return order().order_section(heads, group, query_len, head_dim, causal, least)

    assert section(32, 8192, 128, True) == 2  # of 8 MB each
    assert section(47, 4096, 128, True) == 4
    assert section(47, 2048, 128, True) == 9  # 9, 9, 9, 9, 11: eight fit
    assert section(16, 2**30, 128, True) == 2
    assert section(16, 2**30, 128, False) == 4
    # Of pairs of blocks, at head_dim 256 on sm90a, and on sm80 without a mask.
    assert section(8, 16384, 256, True, least=1) == section(8, 8192, 256, True, least=1) == 1
    assert section(8, 2048, 256, True, least=1) == 4
    assert section(64, 2048, 256, False, least=8) == 8
    assert section(128, 2048, 128, False) == 8
    assert section(128, 1024, 128, False, group=4) == 4
    # If the last section has another order, there is a section before it.
    assert [section(3, 64, 64, causal, group)
            for causal, group in ((False, 1), (True, 2), (True, 1))] == [3, 3, 1]
    assert section(2**20, 0, 64, False) == 2**20
    for causal in (False, True):
        assert section(1, 1, 64, causal) == 1
