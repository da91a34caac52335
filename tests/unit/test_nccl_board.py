"""The board on which ranks of different processes post refusals and failures."""

import ctypes as ct
import glob
import os
import pathlib
import stat
import subprocess
import sys
import threading

import pytest
from helpers.ring_abi import build_helper

SOURCES = pathlib.Path(__file__).parents[2] / "src" / "cuda"
MOST = 32  # latest notes of a rank that the others can read


@pytest.fixture(scope="module")
def path():
    return build_helper(
        "board.cpp", f"-I{SOURCES}", f"-I{SOURCES}/include",
        f"{SOURCES}/ring/exchange/nccl/board.cpp",
    )  # fmt: skip


def library(path):
    lib = ct.CDLL(path)
    lib.board_join.restype = ct.c_void_p
    for name in ("begin", "compare", "look"):
        getattr(lib, f"board_{name}").restype = ct.c_char_p
    for name in ("begin", "compare", "look", "refuse", "fail", "leave", "close_entry"):
        getattr(lib, f"board_{name}").argtypes = [
            ct.c_void_p, *{"refuse": (ct.c_char_p, ct.c_int), "fail": (ct.c_char_p,)}.get(name, ())
        ]
    return lib


class Rank:
    def __init__(self, lib, name, rank, world_size=2):
        self.lib, self.board = lib, lib.board_join(name.encode(), rank, world_size)
        assert self.board

    def __getattr__(self, call):
        return lambda *given: getattr(self.lib, f"board_{call}")(self.board, *given)


@pytest.fixture
def ranks(path):
    lib, name = library(path), f"/dev/shm/baracuda-test-{os.getpid()}"
    both = [Rank(lib, name, rank) for rank in range(2)]
    assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
    both[0].close_entry()
    yield both
    for rank in both:
        rank.leave()
    assert not glob.glob(f"{name}*")


OTHER = """
import sys
sys.path.insert(0, sys.argv[1])
from unit.test_nccl_board import Rank, library
rank = Rank(library(sys.argv[2]), sys.argv[3], 1)
for line in sys.stdin:
    call, *given = line.split()
    given = [int(x) if x.isdigit() else x.encode() for x in given]
    print(getattr(rank, call)(*given), flush=True)
"""


def test_between_processes(path):
    name = f"/dev/shm/baracuda-test-{os.getpid()}"
    mine = Rank(library(path), name, 0)
    tests = pathlib.Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", OTHER, tests, path, name], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:

        def ask(line):
            other.stdin.write(line + "\n")
            other.stdin.flush()
            return other.stdout.readline().strip()

        assert ask("begin") == "None" and mine.begin() is None
        mine.close_entry()
        ask("refuse too-wide 0")
        assert mine.look() is None  # call 2 is not begun here
        assert mine.begin() == b"too-wide"
        assert mine.begin() is None and mine.look() is None
        ask("refuse too-late 0")  # its call 3, which has begun here
        assert mine.look() == b"too-late"
        mine.fail(b"too-late")
        assert ask("look") == "b'too-late'"
        other.stdin.close()
    mine.leave()
    assert not glob.glob(f"{name}*")


def test_calls_that_all_refuse_are_forgotten(ranks):
    one, other = ranks
    for call in range(3 * MOST):
        first, second = (one, other) if call % 3 else (other, one)
        first.refuse(b"no", 0)
        if call % 2:
            second.refuse(b"no", 0)
        else:
            assert second.begin() == b"no"
        assert one.look() is None and other.look() is None
    assert one.begin() is None and other.begin() is None


def test_a_comparison_where_another_rank_runs(ranks):
    one, other = ranks
    for _ in range(2 * MOST):  # comparisons of all ranks are allowed
        assert one.compare() is None and other.compare() is None
        assert one.begin() is None and other.begin() is None
        assert one.look() is None and other.look() is None
    assert one.compare() is None
    assert b"calls validate()" in other.begin()
    assert b"calls validate()" in one.look()  # it waits for the other's answer


def test_a_run_where_another_rank_compares(ranks):
    one, other = ranks
    assert one.begin() is None
    assert other.compare() is None and other.look() is None
    assert b"calls validate()" in one.look()


def test_a_call_that_was_begun_and_is_refused(ranks):
    one, other = ranks
    assert one.begin() is None and other.begin() is None
    one.refuse(b"mine", 1)
    assert other.look() == b"mine" and one.look() is None
    assert other.look() is None  # told once


def test_a_refusal_at_the_same_moment_is_found_once(path):
    """When the call begins, or at the next poll."""
    lib = library(path)
    found = {"begin": 0, "look": 0}
    for turn in range(100):
        name = f"/dev/shm/baracuda-test-{os.getpid()}-{turn}"
        one, other = Rank(lib, name, 0), Rank(lib, name, 1)
        one.close_entry()
        start, answers = threading.Barrier(2), []

        def begin(start=start, answers=answers, other=other):
            start.wait()
            answers.append(other.begin())

        thread = threading.Thread(target=begin)
        thread.start()
        start.wait()
        one.refuse(b"no", 0)
        thread.join()
        early, late = answers[0], other.look()
        assert {early, late} == {b"no", None}
        found["begin" if early else "look"] += 1
        one.leave()
        other.leave()
    assert sum(found.values()) == 100
