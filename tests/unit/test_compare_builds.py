"""The script that holds the speed of two builds against each other."""

import contextlib
import sys
from types import SimpleNamespace

import pytest

import baracuda_kernels as bk
from benchmarks import compare_builds, rounds


def test_the_bound_of_the_median():
    """By hand: of 9 values the median lies below the 8th with 1 - 10/512, the 7th 1 - 46/512."""
    assert compare_builds.upper_bound([9, 1, 2, 8, 3, 7, 4, 6, 5]) == 8
    assert compare_builds.upper_bound(list(range(1, 16))) == 12
    assert compare_builds.upper_bound(list(range(1, 22))) == 15
    assert compare_builds.upper_bound([1.0] * 9) == 1.0


@pytest.mark.framework("torch")
def test_calls_are_timed_in_processes_of_their_own():
    calls = compare_builds.calls("host")
    assert {call.what for call in calls} == compare_builds._LIMITS.keys() - {"middle step", "all steps"}
    with contextlib.closing(compare_builds.Build(sys.executable, sustained=True)) as build:
        for call in calls:
            assert 1e-7 < build.seconds(call) < 10, call
        with pytest.raises(RuntimeError, match="ended"):
            build.seconds(calls[-1]._replace(dtype="s8"))


def test_a_slower_build_is_told(monkeypatch, capsys):
    def build(where, sustained):
        assert sustained == (where == "sustained")
        slower = 1.2 if where == "new" else 1.0
        return SimpleNamespace(
            seconds=lambda call: 1.0 if call.what == "import" else slower, close=lambda: None
        )

    monkeypatch.setattr(compare_builds, "Build", build)
    monkeypatch.setattr(rounds, "_SETTLING_SECONDS", 0.001)
    for new, only, code in (("new", "run", 1), ("new", "import", 0), ("old", "", 0)):
        with pytest.raises(SystemExit, match=str(code)):
            compare_builds.main(["--device", "host", "--only", only, "old", new])
        assert ("SLOWER" in capsys.readouterr().out) == bool(code)
    with pytest.raises(SystemExit, match="0"):
        compare_builds.main(["--device", "host", "--sustained", "sustained", "sustained"])


def test_a_folder_that_is_not_imported_is_refused(tmp_path, monkeypatch):
    """This Python's own build would be timed in its name."""
    with pytest.raises(SystemExit, match="got a folder without a build"):
        compare_builds.Build(str(tmp_path))
    (tmp_path / "baracuda_kernels").mkdir()
    own = bk.__file__
    monkeypatch.setattr(compare_builds.Build, "_said", lambda self, program: own)
    with pytest.raises(SystemExit, match="imports .* instead"):
        compare_builds.Build(str(tmp_path))
