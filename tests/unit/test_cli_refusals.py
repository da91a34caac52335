"""Refusals of the command line: typed, in one line, before any work, without a traceback."""

import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from helpers.command_line import invoke, ok, refused
from safetensors.numpy import load_file, save_file

from baracuda_kernels import local_ring, reference


@pytest.fixture
def qkv(tmp_path):
    path = tmp_path / "qkv.safetensors"
    ok("sample", "-o", path, "--seq", 48, "--heads", 2, "--head-dim", 16)
    return path


@pytest.fixture
def no_run(monkeypatch):
    """Fails the test: a command must check its arguments before it computes."""

    def run(*args, **options):
        raise AssertionError("the computation has begun")

    monkeypatch.setattr(local_ring, "run_with_plan", run)


@pytest.mark.parametrize("how", ["same", "symlink", "hardlink"])
def test_the_output_is_never_the_input(qkv, tmp_path, how, no_run):
    out = qkv
    if how != "same":
        out = tmp_path / "other.safetensors"
        os.symlink(qkv, out) if how == "symlink" else os.link(qkv, out)
    before = qkv.read_bytes()
    kind, message = refused("run", qkv, "--ranks", 2, "-o", out)
    assert kind == "FileProblemError" and "is the input" in message
    assert qkv.read_bytes() == before


def test_a_target_that_cannot_be_written_is_refused_first(qkv, tmp_path, no_run):
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    long_name = tmp_path / ("x" * 300 + ".npz")
    for out in (folder, long_name, "/proc/out.npz"):
        kind, message = refused("run", qkv, "--ranks", 2, "-o", out)
        assert kind == "FileProblemError" and "cannot be written" in message
    pictures = ("bench", "ring", "--device", "host", "--plot", "/proc/x.png")
    assert "cannot be written" in refused(*pictures)[1]
    assert (
        "cannot be written" in refused("bench", "ring", "--device", "host", "-o", "/proc/x.json")[1]
    )


def test_looking_at_the_target_leaves_what_is_there(qkv, tmp_path):
    out = tmp_path / "out.npz"
    out.write_bytes(b"mine")
    refused("run", qkv, "--ranks", 7, "-o", out)
    assert out.read_bytes() == b"mine"


def test_json_is_valid_where_numbers_have_no_end(qkv, tmp_path, monkeypatch):
    """RFC 8259 has no Infinity; the text is what float() reads."""
    errors = {"rms": math.inf, "max": -math.inf, "relative": math.nan}
    monkeypatch.setattr(reference, "error_of", lambda *a: errors)
    shown = ok("run", qkv, "--ranks", 2, "--check", "--json", "-o", tmp_path / "out.npz").stdout

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    report = json.loads(shown, parse_constant=refuse)
    assert report["check"]["y"] == {"rms": "Infinity", "max": "-Infinity", "relative": "NaN"}
    assert math.isinf(float(report["check"]["y"]["rms"]))


def test_the_timeout_of_a_host_run_acts(tmp_path):
    path, out = tmp_path / "long.safetensors", tmp_path / "out.npz"
    ok("sample", "-o", path, "--seq", "16k", "--heads", 8)
    kind, message = refused("run", path, "--ranks", 16, "--timeout", 0.05, "-o", out)
    assert kind == "NcclTimeoutError" and message == (
        "run_local_ring: timeout: the run was stopped after 0.05 s"
    )
    assert not out.exists()
    for bad in (0, -1, "nan"):
        assert refused("run", path, "--ranks", 16, "--timeout", bad, "-o", out)[0] == (
            "InvalidProblemError"
        )


def fp8_file(path):
    """The bytes of a safetensors file: the header's length, the header, the data."""
    names = ("q", "k", "v")
    header = {
        name: {"dtype": "F8_E4M3", "shape": [1, 1, 4, 4], "data_offsets": [16 * i, 16 * i + 16]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(48))


def npz_of_headers(path, shape):
    """An .npz whose members claim a shape and hold nothing."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("q", "k", "v"):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            archive.writestr(f"{name}.npy", header.getvalue())


def test_files_that_break_their_reader(tmp_path):
    out = tmp_path / "out.npz"

    def run(path):
        kind, message = refused("run", path, "--ranks", 1, "-o", out)
        assert "\n" not in message and not out.exists()
        return kind, message

    fp8 = tmp_path / "fp8.safetensors"
    fp8_file(fp8)
    kind, message = run(fp8)
    assert kind == "FileProblemError" and "F8_E4M3" in message and "BF16" in message

    huge = tmp_path / "huge.npz"
    npz_of_headers(huge, (1, 1, 2**30, 64))
    assert run(huge)[0] == "FileProblemError"
    npz_of_headers(huge, (2**62, 2**62))
    assert run(huge)[0] == "FileProblemError"

    lone = tmp_path / "lone.npz"
    with lone.open("wb") as file:
        np.save(file, np.zeros((1, 1, 4, 4)))
    assert "one array" in run(lone)[1]

    flat = tmp_path / "flat.npz"
    np.savez(flat, q=np.zeros(0), k=np.zeros(0), v=np.zeros(0))
    assert run(flat)[0] == "InvalidProblemError"
    packed = tmp_path / "packed.npz"
    x = np.zeros((1, 1, 4, 4), np.float32)
    np.savez_compressed(packed, q=x, k=x, v=x)
    data = bytearray(packed.read_bytes())
    data[60:90] = bytes(30)
    packed.write_bytes(data)
    assert run(packed)[0] == "FileProblemError"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("shape", [(0, 2, 4, 8), (1, 2, 0, 8), (1, 0, 4, 8), (1, 2, 4, 0)], ids=str)
def test_tensors_without_elements(tmp_path, suffix, shape):
    """A result or a typed refusal, and no traceback."""
    path, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    x = np.zeros(shape, np.float32)
    np.savez(path, q=x, k=x, v=x) if suffix == ".npz" else save_file({"q": x, "k": x, "v": x}, path)
    arguments = ("run", path, "--ranks", 2, "--check", "-o", out)
    if 0 in (shape[1], shape[3]):
        assert invoke(*arguments).exit_code in (0, 2)
        if invoke(*arguments).exit_code == 2:
            refused(*arguments)
    else:
        ok(*arguments)
        saved = np.load(out)["y"] if suffix == ".npz" else load_file(out)["y"]
        assert saved.shape == shape


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("sample", "-o", "x.npz", "--seed", "-1"), "BadParameter"),
        (("sample", "-o", "x.npz", "--seq", "1e11"), "MemoryError"),
        (("sample", "-o", "x.npz", "--seq", "1e300"), "MemoryError"),
        (("sample", "-o", "x.npz", "--heads", str(10**30)), "MemoryError"),
        (("sample", "-o", "x.npz", "--seq", "-1"), "BadParameter"),
        (("bench", "ring", "--device", "host", "--chunk", str(10**12)), "MemoryError"),
        (("bench", "ring", "--device", "host", "--ranks", str(10**9)), "BadParameter"),
        (("bench", "ring", "--device", "host", "--ranks", "65536", "--chunk", "1", "--heads", "1",
          "--head-dim", "8"), "MemoryError"),
        (("explain", "--heads", str(10**30)), "InvalidProblemError"),
        (("explain", "--scale", "nan"), "InvalidProblemError"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_numbers_beyond_all_bounds(arguments, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, message = refused(*arguments)
    # click has another error for a value out of range
    assert (found if found != "NoSuchOption" else "") in (kind, "BadParameter"), message
    assert not list(tmp_path.iterdir())


def test_a_ring_of_too_many_ranks(qkv, tmp_path):
    assert "65536" in refused("run", qkv, "--ranks", 10**9, "-o", tmp_path / "out.npz")[1]


def test_sizes_are_those_of_plan(tmp_path):
    path = tmp_path / "x.safetensors"
    ok("sample", "-o", path, "--seq", "1k", "--heads", 1, "--head-dim", 4)
    assert load_file(path)["q"].shape == (1, 1, 1024, 4)


def test_the_host_by_its_other_name(qkv, tmp_path):
    report = json.loads(
        ok("run", qkv, "--ranks", 2, "--device", "cpu", "--json", "-o", tmp_path / "out.npz").stdout
    )
    assert report["family"] == "host"
    assert (
        "kernel host"
        in ok(
            "bench",
            "ring",
            "--device",
            "cpu",
            "--ranks",
            2,
            "--chunk",
            8,
            "--head-dim",
            8,
            "--runs",
            1,
        ).stdout
    )


def test_the_real_process_ends_in_one_line(qkv):
    done = subprocess.run(
        [sys.executable, "-m", "baracuda_kernels", "run", qkv, "--ranks", "2", "-o", qkv],
        capture_output=True, check=False, text=True, cwd=qkv.parent,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("Error: ")


def test_ctrl_c_ends_a_run_in_one_line_and_writes_nothing(tmp_path):
    command = [sys.executable, "-m", "baracuda_kernels"]
    given = ("--seq", "256k", "--heads", 1, "--dtype", "f16")  # little to read, long to compute
    ok("sample", "-o", tmp_path / "x.safetensors", *given)
    process = subprocess.Popen(
        [*command, "run", "x.safetensors", "--ranks", "64", "--json", "-o", "out.npz"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(2.0)
    running = process.poll() is None
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert running and process.returncode == 130 and out == ""
    assert json.loads(errors)["error"] == {"type": "Abort", "message": "stopped"}
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_with_bytes_changed_at_random(tmp_path, suffix):
    """A result, or a refusal in one line, and no warning."""
    good, broken = tmp_path / f"good{suffix}", tmp_path / f"broken{suffix}"
    ok("sample", "-o", good, "--seq", 8, "--heads", 2, "--head-dim", 4)
    random, codes = np.random.default_rng(5), set()
    for _ in range(300):
        data = np.frombuffer(good.read_bytes(), np.uint8).copy()
        places = random.integers(0, min(len(data), 600), random.integers(1, 6))
        data[places] = random.integers(0, 256, len(places))
        broken.write_bytes(data.tobytes()[: len(data) - int(random.integers(0, 2) * 40)])
        result = invoke(
            "run", broken, "--ranks", 2, "--check", "--json", "-o", tmp_path / "out.npz"
        )
        codes.add(result.exit_code)
        assert isinstance(result.exception, (SystemExit, type(None))), result.exc_info
        json.loads(result.stdout or result.stderr)
    assert codes == {0, 2}
