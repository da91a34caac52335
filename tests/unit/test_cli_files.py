"""What the command line writes is whole, or the file that was there stays."""

import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from helpers.command_line import ok, refused

import baracuda_kernels as bk
from baracuda_kernels.cli import main

BENCH = ("bench", "ring", "--device", "host", "--ranks", "2", "--chunk", "16", "--heads", "1")
COMMANDS = {
    "npz": ("sample", "--seq", "256", "--heads", "4", "--head-dim", "64", "--dtype", "f32", "-o"),
    "safetensors": ("sample", "--seq", "256", "--heads", "4", "--head-dim", "64", "-o"),
    "json": (*BENCH, "-o"),
    "trace.json": (*BENCH, "--trace"),
    "png": (*BENCH, "--plot"),
}


# A process that can write 512 bytes to a file, from when all is imported.
FULL_DISK = """
import resource, sys
from baracuda_kernels.cli import _bench, _plot, _sample, main
if "--plot" in sys.argv:
    _plot.figure_module()
    import matplotlib.backends.backend_agg, matplotlib.font_manager
resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
main()
"""


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_failed_write_leaves_what_was_there(tmp_path, kind, there):
    if kind == "png":
        pytest.importorskip("matplotlib", reason="capability: matplotlib is installed")
    path = tmp_path / f"x.{kind}"
    if there:
        path.write_bytes(b"what was there")
    run = subprocess.run([sys.executable, "-c", FULL_DISK, *COMMANDS[kind], path], check=False,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    assert [one.name for one in tmp_path.iterdir()] == [path.name] * there
    assert not there or path.read_bytes() == b"what was there"


def test_a_file_that_is_replaced_keeps_its_mode_and_its_links(tmp_path):
    path, link = tmp_path / "x.npz", tmp_path / "link.npz"
    path.write_bytes(b"")
    path.chmod(0o640)
    link.symlink_to(path)
    ok("sample", "-o", link, "--seq", 8, "--heads", 1, "--head-dim", 8, "--dtype", "f32")
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    with np.load(path) as file:
        assert file["q"].shape == (1, 1, 8, 8)


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    os.symlink(path, path)
    what = ("sample", "-o", path, "--seq", 8, "--heads", 1, "--head-dim", 8)
    assert refused(*what)[0] == "FileProblemError"


@pytest.mark.parametrize("how", [["--json"], []])
@pytest.mark.parametrize("command", ["skus", "info", "explain"])
def test_an_answer_that_cannot_be_written_is_one_line(command, how):
    with open("/dev/full", "wb") as full:
        run = subprocess.run(
            [sys.executable, "-m", "baracuda_kernels", command, *how], check=False, stdout=full,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
    message = json.loads(run.stderr)["error"]["message"] if how else run.stderr
    assert "stdout: cannot be written: [Errno 28] No space left on device" in message


def test_a_file_that_fails_is_not_called_stdout(monkeypatch):
    def fail():
        raise FileNotFoundError(2, "No such file or directory", "/a/file")

    monkeypatch.setattr(main.commands["info"], "callback", lambda **_: fail())
    assert refused("info") == (
        "FileNotFoundError", "[Errno 2] No such file or directory: '/a/file'")


@pytest.mark.skipif(
    not bk._build_info()["cuda_built"], reason="capability: CUDA kernels in the build"
)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_without_our_signs_is_no_error(encoding):
    what = ("--seq", "8k", "--ranks", "1", "--heads", "8", "--head-dim", "128", "--arch", "sm_90")
    run = subprocess.run(
        [sys.executable, "-m", "baracuda_kernels", "predict", *what, "--link-gbps", "400"],
        check=False, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert run.returncode == 0 and not run.stderr, run.stderr
    assert b"a later step, slowest rank    |          ? |" in run.stdout  # a dash elsewhere
