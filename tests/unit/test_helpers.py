"""The helpers of these tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import forked
from helpers.pages import run_to_its_end, torchrun
from helpers.rank_pool import RankPool

TESTS = Path(__file__).parents[1]


def test_nothing_is_left_in_the_temporary_directory(tmp_path):
    script = "from helpers import ring_abi; print(ring_abi.build_helper('flush_to_zero.cpp'))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert result.stdout.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def collected(*arguments):
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         TESTS / "unit" / "test_walls.py", "-k", "named", *arguments],
        capture_output=True, text=True, check=False, cwd=TESTS.parent,
    )  # fmt: skip
    return result, [line for line in result.stdout.splitlines() if "::" in line]


def test_options_of_this_run_are_not_those_of_runs_that_it_starts():
    assert "PYTEST_ADDOPTS" not in os.environ


def test_shares_are_all_tests_and_each_once():
    _, everything = collected()
    shares = [collected("--share", f"{i}/3")[1] for i in range(3)]
    assert sorted(x for share in shares for x in share) == sorted(everything)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    result, _ = collected("--share", "3/3")
    assert result.returncode != 0 and "invalid share value: '3/3'" in result.stderr


ENDLESS = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.framework("torch")
def test_a_launcher_that_is_late_leaves_no_rank(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    command = [*torchrun(2), sys.executable, tmp_path / "endless.py", tmp_path]
    for seconds in (15, 60):  # the ranks must have started
        with pytest.raises(AssertionError, match=f"not done in {seconds} s"):
            run_to_its_end(command, cwd=tmp_path, environment=os.environ, timeout=seconds)
        if len(files := list(tmp_path.glob("*.pid"))) == 2:
            break
    assert len(files) == 2
    for file in files:
        assert not Path("/proc", file.read_text()).exists()


RANK = """
import os, sys, time, torch
print(*sys.argv[1:], os.getcwd(), sys.path[0], os.environ["RANK"], torch.get_num_threads(), flush=True)
if sys.argv[1] == "fails" and os.environ["RANK"] == "1":
    time.sleep(1)  # the other has printed by then
    raise ValueError("of rank 1")
if sys.argv[1] != "ends":
    sys.stdin.read()
    time.sleep(600)
"""


@pytest.mark.framework("torch")
@pytest.mark.parametrize(
    ("how", "codes", "timeout"),
    [("ends", [0, 0], 90), ("fails", [None, 1], 90), ("stays", [None, None], 10)],
)
def test_forked_ranks(tmp_path, how, codes, timeout):
    if not forked.possible():
        pytest.skip("capability: a machine without a GPU")
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    (tmp_path / "elsewhere").mkdir()
    found, output, errors = forked.run_ranks(
        program, [how, "more"], 2,
        cwd=tmp_path / "elsewhere", environment=os.environ, timeout=timeout,
    )  # fmt: skip
    assert found == codes
    for rank in range(2):
        assert f"{how} more {tmp_path / 'elsewhere'} {tmp_path} {rank} 1\n" in output
    assert ("ValueError: of rank 1" in errors) == (how == "fails")


def test_a_rank_that_gives_no_answer_tells_where_it_was(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        "from helpers.rank_tasks import serve\n"
        "class Rank:\n"
        "    rank = 0\n"
        "    def unique_id(self, task): return {'unique_id': ''}\n"
        "    def join(self, task): return {}\n"
        "    def never_answers(self, task): time.sleep(60)\n"
        "serve(Rank())\n"
    )
    pool = RankPool(1, worker)
    with pytest.raises(AssertionError, match=r"gave no answer(?s:.*)in never_answers"):
        pool.run({"do": "never_answers"}, seconds=0.5)
    pool.close()
