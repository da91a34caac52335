"""The command line: files in and out, tables, JSON, and errors as messages with exit code 2."""

import json
import subprocess
import sys
import zipfile
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from helpers.command_line import ok, refused
from safetensors.numpy import load_file, save_file

import baracuda_kernels as bk
from baracuda_kernels import reference
from baracuda_kernels._core import _info


def load(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def qkv(tmp_path):
    path = tmp_path / "qkv.safetensors"
    ok("sample", "-o", path, "--seq", 48, "--heads", 4, "--kv-heads", 2, "--head-dim", 16)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_sample_then_run(tmp_path, suffix, dtype):
    given, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    ok("sample", "-o", given, "--seq", 24, "--heads", 2, "--head-dim", 8, "--dtype", dtype)
    ok("run", given, "--ranks", 3, "--causal", "-o", out)
    tensors, outputs = load(given), load(out)
    exact_y, exact_lse = reference.attention(
        tensors["q"], tensors["k"], tensors["v"], is_causal=True
    )
    assert outputs["y"].dtype == tensors["q"].dtype
    assert reference.error_of(outputs["y"], exact_y)["relative"] < 1e-3
    assert reference.error_of(outputs["lse"], exact_lse)["max"] < 1e-5


def test_bfloat16_goes_through_safetensors(tmp_path):
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    ok("sample", "-o", given, "--seq", 16, "--heads", 1, "--head-dim", 8, "--dtype", "bf16")
    assert load_file(given)["q"].dtype == ml_dtypes.bfloat16
    ok("run", given, "--ranks", 2, "-o", out)
    assert load_file(out)["y"].dtype == ml_dtypes.bfloat16


def test_sample_is_a_function_of_its_seed(tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        ok("sample", "-o", path, "--seq", 8, "--seed", seed)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_run_reports_error_and_kernel(qkv, tmp_path, layout):
    out = tmp_path / "out.safetensors"
    arguments = ("run", qkv, "--ranks", 4, "--causal", "--layout", layout, "--check", "-o", out)
    result = ok(*arguments)
    for word in ("rms", "max", "float64", "kernel: host"):
        assert word in result.stdout
    assert "16/16" in result.stderr, "the progress bar"
    report = json.loads(ok(*arguments, "--json").stdout)
    assert report["family"] == "host" and report["shapes"]["lse"] == [1, 4, 48]
    assert 0 < report["check"]["y"]["rms"] < 1e-6
    assert bk.KernelSku.from_dict(report["sku"]).arch is bk.ArchSku.HOST


def test_check_would_see_a_wrong_scale(qkv, tmp_path, monkeypatch):
    """--check compares with something independent of the plan that ran."""
    exact = reference.attention
    monkeypatch.setattr(
        reference, "attention", lambda q, k, v, scale, **more: exact(q, k, v, scale=2, **more)
    )
    out = tmp_path / "out.npz"
    report = json.loads(ok("run", qkv, "--ranks", 2, "--check", "-o", out, "--json").stdout)
    assert report["check"]["y"]["rms"] > 1e-2


def test_scale_has_its_effect(qkv, tmp_path):
    results = []
    for scale in ("0.1", "1.0"):
        out = tmp_path / f"{scale}.npz"
        ok("run", qkv, "--ranks", 2, "--scale", scale, "-o", out)
        results.append(load(out)["y"])
    assert not np.allclose(*results)


def test_uneven_length_names_the_lengths_that_fit(qkv, tmp_path):
    kind, message = refused("run", qkv, "--ranks", 7, "-o", tmp_path / "out.npz")
    assert kind == "InvalidProblemError" and "42 and 49" in message
    assert not (tmp_path / "out.npz").exists()


def test_cuda_without_a_gpu_says_why(qkv, tmp_path):
    if _info.devices():
        pytest.skip("this machine has a CUDA device")
    kind, message = refused("run", qkv, "--ranks", 2, "--device", "cuda", "-o", tmp_path / "o.npz")
    assert kind == "UnsupportedError" and "cuda:0" in message


def test_files_that_cannot_be_read(qkv, tmp_path):
    out = tmp_path / "out.npz"

    def run(path):
        return refused("run", path, "--ranks", 2, "-o", out)

    assert "no such file" in run(tmp_path / "absent.npz")[1]
    assert "must end in" in run(tmp_path / "qkv.pt")[1]

    lacking = tmp_path / "lacking.safetensors"
    save_file({"q": np.zeros((1, 1, 4, 4), np.float32)}, lacking)
    assert "lacks k, v; it holds q" in run(lacking)[1]

    for name in ("broken.npz", "broken.safetensors"):
        broken = tmp_path / name
        broken.write_bytes(b"no tensors in here")
        assert name in run(broken)[1]

    x = np.zeros((1, 1, 4, 4), ml_dtypes.bfloat16)
    voided = tmp_path / "voided.npz"
    np.savez(voided, q=x, k=x, v=x)
    assert "bfloat16" in run(voided)[1]


def test_pickles_are_never_loaded(tmp_path):
    class Payload:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    path = tmp_path / "evil.npz"
    np.savez(path, q=np.array([Payload()], dtype=object), k=np.zeros(1), v=np.zeros(1))
    with zipfile.ZipFile(path) as archive:
        assert "q.npy" in archive.namelist()
    _kind, message = refused("run", path, "--ranks", 1, "-o", tmp_path / "out.npz")
    assert "pickle" in message and not (tmp_path / "ran").exists()


def test_files_that_cannot_be_written(qkv, tmp_path):
    assert "no folder" in refused("run", qkv, "--ranks", 2, "-o", tmp_path / "no" / "o.npz")[1]
    assert "must end in" in refused("sample", "-o", tmp_path / "x.bin")[1]
    bf16 = ("sample", "-o", tmp_path / "x.npz", "--dtype", "bf16", "--seq", 8)
    assert "bfloat16" in refused(*bf16)[1]
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "x.npz"),
        ("run", "x.npz", "--ranks", "0", "-o", "y.npz"),
        ("sample",),
        ("sample", "-o", "x.npz", "--heads", "3", "--kv-heads", "2"),
        ("skus", "--arch", "sm12345"),
        ("skus", "--op", "nothing"),
        ("skus", "--direction", "sideways"),
        ("explain", "--arch", "abacus"),
        ("explain", "--op", "nothing"),
        ("explain", "--op", "flash_sdpa", "--layout", "zigzag"),
        ("explain", "--direction", "sideways"),
        ("explain", "--heads", "3", "--kv-heads", "2"),
        ("explain", "--head-dim", "-1"),
        ("nothing",),
    ],
)
def test_usage_errors_are_json_too(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(*arguments)
    assert not list(tmp_path.iterdir())


def test_info_of_an_exchange_that_is_none(monkeypatch):
    monkeypatch.setenv("BARACUDA_EXCHANGE", "fast")
    said = "no communicator is made, by BARACUDA_EXCHANGE (exchange: got 'fast', must be"
    assert said in ok("info").stdout.replace("\n  ", " ")


def test_info():
    text = ok("info").stdout
    report = json.loads(ok("info", "--json").stdout)
    build = _info.build_info()
    assert report["build"] == build
    for fact in (bk.__version__, build["source_hash"], _info.host_info()["isa"]):
        assert fact in text
    host = [row for row in report["runs_here"] if row["device"] == "host"]
    for op in ("ring_attention", "flash_sdpa"):
        asked = [(row["direction"], row["dtype"]) for row in host if row["op"] == op]
        assert sorted(asked) == sorted(
            (d, t) for d in ("FORWARD", "BACKWARD") for t in ("F16", "BF16", "F32", "F64"))
        assert f"{op} forward (batch 1, heads 8, query_len 4096, head_dim 128" in text
    assert all(row["family"] for row in report["runs_here"])
    assert ("no GPU will be used" in text) == bool(report["gpu_reason"])
    assert bool(report["gpu_reason"]) == (not (_info.devices() and build["cuda_built"]))


def test_skus_and_its_filters():
    everything = json.loads(ok("skus", "--json").stdout)["skus"]
    assert len(everything) == len(bk.registry.skus())
    assert {row["op_name"] for row in everything} >= {"flash_sdpa", "ring_attention"}
    some = json.loads(
        ok("skus", "--json", "--op", "ring_attention", "--arch", "host", "--element", "bf16").stdout
    )["skus"]
    assert [row["direction"] for row in some] == ["FORWARD", "BACKWARD"]
    assert {row["family"] for row in some} == {"host"}
    exact = json.loads(ok("skus", "--math-precision", "f64", "--json").stdout)["skus"]
    assert {row["element"] for row in exact} == {"F64"}
    unordered = json.loads(ok("skus", "--not-deterministic", "--json").stdout)["skus"]
    assert {(sku["family"], sku["direction"]) for sku in unordered} == {
        ("sm80", "BACKWARD"), ("sm90a", "BACKWARD")}  # fmt: skip
    forward = json.loads(ok("skus", "--direction", "forward", "--json").stdout)["skus"]
    backward = json.loads(ok("skus", "--direction", "backward", "--json").stdout)["skus"]
    assert {row["direction"] for row in forward} == {"FORWARD"}
    of_one_device = {row["family"] for row in backward if row["op_name"] == "flash_sdpa"}
    assert of_one_device >= {"simt", "host", "sm80", "sm80-deterministic", "sm90a",
                             "sm90a-deterministic"}
    assert {row["family"] for row in backward if row["op_name"] == "ring_attention"} == \
        of_one_device
    assert sorted(map(str, forward + backward)) == sorted(map(str, everything))
    table = ok("skus").stdout
    assert table.count("ring_attention") == sum(
        r["op_name"] == "ring_attention" for r in everything
    )


def test_explain_names_every_family_and_its_reason():
    report = json.loads(ok("explain", "--arch", "host", "--dtype", "f64", "--json").stdout)
    assert report["family"] == "host"
    reasons = {c["family"]: c["reason"] for c in report["candidates"]}
    assert reasons["host"] == "" and all(reasons[f] for f in reasons if f != "host")
    text = ok("explain", "--arch", "host", "--op", "flash_sdpa", "--causal").stdout
    assert "selected" in text and "refused" in text and "flash_sdpa" in text
    backward = ok("explain", "--arch", "host", "--direction", "backward", "--layout", "zigzag").stdout
    assert "ring_attention backward on host" in backward
    options = ok("explain", "--op", "flash_sdpa", "--help").stdout
    assert "--head-dim" in options and "f32_strict" in options and "--layout" not in options
    assert "[contiguous|zigzag|striped]" in ok("explain", "--help").stdout
    nothing = ok("explain", "--arch", "host", "--head-dim", 5000).stdout
    assert "no kernel serves this problem" in nothing


def test_help_and_version():
    assert bk.__version__ in ok("--version").output
    for command in ("run", "sample", "info", "skus", "explain", "predict"):
        assert command in ok("--help").output
        assert "--json" in ok(command, "--help").output


@pytest.mark.parametrize("in_checkout", [False, True])
def test_as_a_module(tmp_path, request, in_checkout):
    """``python -m baracuda_kernels``, also where the source folder shadows the package."""
    cwd = request.config.rootpath if in_checkout else tmp_path
    command = [sys.executable, "-m", "baracuda_kernels"]
    given, out = tmp_path / "in.npz", tmp_path / "out.npz"
    subprocess.run([*command, "sample", "-o", given, "--seq", "16"], cwd=cwd, check=True)
    done = subprocess.run(
        [*command, "run", given, "--ranks", "2", "-o", out, "--json"],
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["ranks"] == 2
    failed = subprocess.run(
        [*command, "run", given, "--ranks", "3", "-o", out], cwd=cwd, check=False,
        capture_output=True, text=True,
    )
    assert failed.returncode == 2 and "15 and 18" in failed.stderr


BENCH = ("bench", "ring", "--device", "host", "--ranks", 3, "--chunk", 32, "--heads", 2,
         "--head-dim", 16, "--dtype", "f32", "--runs", 2)  # fmt: skip


def test_bench_ring_as_a_table_json_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "ring.json", tmp_path / "ring.png"
    result = ok(*BENCH, "--causal", "-o", out, "--plot", picture)
    assert "kernel host on host" in result.stdout and "exposed" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.read_text())
    assert (found["ranks"], found["layout"], found["unit"]) == (3, "zigzag", "ms")
    assert [step["step"] for step in found["steps"]] == [0, 1, 2]
    assert all(len(step["compute"]) == 3 for step in found["steps"])
    total = sum(sum(step["compute"]) for step in found["steps"])
    assert found["compute"] == pytest.approx(total) and found["balance"] >= 1
    assert found["steps"][2]["exchange"] == [0, 0, 0]
    assert json.loads(ok(*BENCH, "--json").stdout)["causal"] is False


def test_bench_ring_as_a_trace(tmp_path):
    """Chrome's JSON object format: a process for each rank, a thread for each lane, times in µs."""
    out, trace = tmp_path / "ring.json", tmp_path / "trace.json"
    ok(*BENCH, "--causal", "-o", out, "--trace", trace)
    found, result = json.loads(trace.read_text()), json.loads(out.read_text())
    assert found["displayTimeUnit"] == "ms" and found["otherData"]["layout"] == "zigzag"
    names = {
        (e["name"], e["pid"], e["tid"]): e["args"]["name"]
        for e in found["traceEvents"]
        if e["ph"] == "M"
    }
    for rank in range(3):
        assert names["process_name", rank, 0] == f"rank {rank}"
        lanes = [names["thread_name", rank, lane] for lane in range(3)]
        assert lanes == ["compute", "exchange", "exposed"]
    spans = [e for e in found["traceEvents"] if e["ph"] == "X"]
    assert len(spans) == len(result["lanes"]) == 3 * (3 + 2 + 2)
    assert min(e["ts"] for e in spans) == 0 and all(e["dur"] >= 0 for e in spans)
    for event, span in zip(spans, result["lanes"], strict=True):
        assert names["thread_name", event["pid"], event["tid"]] == span["name"] == event["cat"]
        assert event["ts"] == pytest.approx(1000 * span["begin"])
        assert event["dur"] == pytest.approx(1000 * (span["end"] - span["begin"]))
        step, rank = span["step"], span["rank"]
        assert event["args"] == {"step": step, "chunk": (rank - step) % 3}
        assert event["pid"] == rank
    for lane in {(e["pid"], e["tid"]) for e in spans}:  # a lane shows one thing at a time
        times = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans if (e["pid"], e["tid"]) == lane)
        assert all(a[1] <= b[0] + 1 for a, b in pairwise(times))


def test_bench_ring_draws_a_lane_for_each_of_the_three(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from baracuda_kernels.cli import _plot_ring

    result = json.loads(ok(*BENCH, "--causal", "--json").stdout)
    axes = Figure().subplots()
    _plot_ring._draw_lanes(axes, result)
    drawn = {bars.get_label(): bars for bars in axes.containers}
    assert set(drawn) == {"compute", "exchange", "exposed"}
    for name, bars in drawn.items():
        spans = [span for span in result["lanes"] if span["name"] == name]
        assert [bar.get_x() for bar in bars] == pytest.approx([s["begin"] for s in spans])
        assert [bar.get_width() for bar in bars] == pytest.approx(
            [s["end"] - s["begin"] for s in spans])  # fmt: skip
        assert [round(bar.get_y() + bar.get_height() / 2) for bar in bars] == [
            span["rank"] for span in spans]  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rank 0", "rank 1", "rank 2"]


def test_the_list_of_commands_is_whole_sentences():
    """No line is cut off at the width of a terminal."""
    listed = ok("--help").stdout.split("Commands:")[1].strip().splitlines()
    assert len(listed) == 7
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_without_a_gpu_the_answer_names_the_host(monkeypatch):
    monkeypatch.setattr("baracuda_kernels._local_memory.why_no_gpu", lambda: "the driver is old")
    kind, message = refused("bench", "ring", "--chunk", 16)
    assert kind == "UnsupportedError" and "must be 'host' here" in message
    assert "the driver is old" in message


def test_what_bench_ring_refuses(tmp_path):
    assert refused(*BENCH, "--trace", tmp_path / "ring.txt")[0] == "FileProblemError"
    both = ("-o", tmp_path / "x.json", "--trace", tmp_path / "x.json")
    assert refused(*BENCH, *both)[0] == "BadParameter"
    assert refused(*BENCH, "-o", tmp_path / "ring.txt")[0] == "FileProblemError"
    assert refused(*BENCH, "-o", tmp_path / "none" / "ring.json")[0] == "FileProblemError"
    assert "got 3, must divide the" in refused(*BENCH, "--kv-heads", 3)[1]
    assert refused(*BENCH, "--device", "moon")[0] == "InvalidProblemError"
