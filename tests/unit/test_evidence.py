"""The evidence tool's own rules: refusals, typed rows, merging, and the page made of them."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
from helpers.pages import ROOT, code_blocks, commands

from baracuda_kernels._core import _info
from benchmarks import all_parts, evidence, report, rows, source
from benchmarks.calls import HOPPER
from benchmarks.rows import row


@pytest.fixture
def root(tmp_path):
    """A folder with sources of its own."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.h").write_text("int a;")
    return tmp_path


def test_a_foreign_source_is_refused(root, monkeypatch, capsys):
    monkeypatch.setattr(evidence, "ROOT", root)
    with pytest.raises(SystemExit, match="2"):
        evidence.main(["--part", "forward", "--out", str(root / "out")])
    assert "refused" in capsys.readouterr().err and not (root / "out").exists()


def test_uncommitted_sources_are_refused(root, monkeypatch):
    monkeypatch.setattr(_info, "build_info", lambda: {"source_hash": source.source_hash(root)})
    assert source.require_own_sources(root) == source.source_hash(root), "without git"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    source.require_own_sources(root)
    (root / "src" / "a.h").write_text("changed")
    with pytest.raises(source.SourceMismatch, match="not committed"):
        source.require_own_sources(root)


CALL = {"family": "sm90a", "dtype": "bf16", "batch": 2, "heads": 16, "kv_heads": 4,
        "query_len": 8192, "key_len": 8192, "head_dim": 128, "causal": True}  # fmt: skip
RING = rows.RingShape(2, 8192, 32, 8, 128, "zigzag", True).params()
ALONE = {
    "forward": [row("forward", CALL, 2.0, {"cudnn": 1.0, "fa2": 1.9})],
    "backward": [
        row("backward", {**CALL, "guarantee": "deterministic"}, 4.0, {"cudnn": 6.0, "fast": 3.6},
            {"ours": 5.0, "peers": {"cudnn": 7.0, "fast": 4.9}}),
    ],
    "error": [
        row("gradient_error", {**RING, "what": what, "family": "sm90a", "exchange": "nccl"}, 2e-4,
            {"one_rank": one_rank, "rounding": 1e-4})
        for what, one_rank in (("dq", 2e-4), ("dk", 1.6e-4), ("dv", 2.5e-4))
    ],
    "runtime": [
        row("memory", {**RING, "ranks": ranks, "exchange": "local"}, ours)
        for ranks, ours in ((2, 6e8), (8, 6.3e8))
    ],
    "tests": [],
}  # fmt: skip


def across(exchange="nccl", **peers):
    """Rows of a ring of two GPUs whose ideal is 1.9 ms."""
    of = {**RING, "exchange": exchange, "max_ctas": 8 if exchange == "nccl" else 0}
    speed = {**of, "rounds": 7, "context_parallel": "absent"}
    peers = {"ideal": 1.9, "steps": 1.8, "all_gather": 3.0, "all_gather_own": 2.1,
             "ulysses": 2.2, **peers}
    return [
        *(row("scaling", {**speed, "what": what}, ms, peers)
          for what, ms in (("eager", 2.0), ("graph", 1.95))),
        *(row("scaling_step", {**of, "step": s}, 0.01 * s, {"compute": 0.9, "exchange": 0.2})
          for s in range(2)),
    ]  # fmt: skip


HEAD = {"schema": 1, "card": "NVIDIA H100 80GB HBM3", "driver": "580.1", "cuda": "13.0",
        "date": "2026-01-01T00:00:00+00:00", "source_hash": "0123456789abcdef"}  # fmt: skip


def part(folder, name, **changes):
    data = {**HEAD, "part": name, "seconds": 1.0,
            "tests": {"passed": 5, "failed": 0, "skipped": 1}, **changes}  # fmt: skip
    data.setdefault("rows", ALONE.get(name))
    rows.write(folder / f"{name}.json", data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "forwards"}, "name: got 'forwards', must be one of forward"),
        ({"unit": "s"}, "unit: got 's', must be 'ms'"),
        ({"params": {**CALL, "rank": 1}}, "params: got .*'rank'"),
        ({"params": {k: v for k, v in CALL.items() if k != "causal"}}, "params: got"),
        ({"ours": "1.0"}, "figures: got {'ours': '1.0'}, must be numbers"),
        ({"peers": {"cudnn": None}}, "figures: got"),
    ],
)
def test_a_row_is_one_of_its_kind(change, says):
    with pytest.raises(ValueError, match=says):
        rows.checked(row("forward", CALL, 1.0) | change)


def test_every_committed_file_is_read_and_has_a_page():
    results = {path.stem: rows.read(path) for path in report.RESULTS.glob("*.json")}
    assert results and all(result["rows"] for result in results.values())
    text = report.page(results)
    for name, result in results.items():
        for of in (result, *result.get("parts", {}).values()):
            assert f"`{of['source_hash']}`" in text, name
        parts = result.get("parts", {})
        assert not parts or sum(of["rows"] for of in parts.values()) == len(result["rows"])


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_two_parts_have_all_calls_of_a_kind(kind, monkeypatch):
    """Each call in one of them. The H200's file has every row of both."""
    module = importlib.import_module(f"benchmarks.{kind}")
    both = [*module.PROBLEMS, *module.MORE]
    assert len(set(both)) == len(both) and set(HOPPER) <= set(both)
    monkeypatch.setattr(module, "measurements", lambda _, problems: problems)
    parts = (evidence.PARTS[kind], evidence.PARTS[f"{kind}_more"])
    assert [evidence._measured(modules, lambda _: []) for _, modules in parts] == [
        (module.PROBLEMS, 0), (module.MORE, 0)
    ]  # fmt: skip


def test_a_part_that_is_stopped_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    made = []
    heads = [dict(HEAD, source_hash="a" * 16)]

    def measure(query_len):
        made.append(query_len)
        return [row("forward", {**CALL, "query_len": query_len}, float(len(made)))] * (query_len % 2 + 1)

    module = SimpleNamespace(rows=lambda: [partial(measure, length) for length in (1, 2, 3)])
    monkeypatch.setitem(sys.modules, "benchmarks.some_calls", module)
    monkeypatch.setattr(evidence, "PARTS", {"forward": (Counter, ("some_calls",))})
    monkeypatch.setattr(evidence, "require_own_sources", lambda _: "")
    monkeypatch.setattr(evidence, "head", lambda _: heads[-1])
    now = iter(range(100))
    monkeypatch.setattr(evidence, "time", SimpleNamespace(monotonic=lambda: next(now)))

    def run(seconds):
        with pytest.raises(SystemExit) as ended:
            evidence.main(["--part", "forward", "--out", str(tmp_path), "--seconds", str(seconds)])
        return ended.value.code

    # Each look at the clock is a second: at the start, and before each measurement.
    assert run(2) == 3 and made == [1, 2]
    assert "2 measurements are in" in capsys.readouterr().err
    assert not (tmp_path / "forward.json").exists()
    partial_file = tmp_path / "forward.partial.json"
    assert [one["ours"] for one in rows.read(partial_file)["rows"]] == [1.0, 1.0, 2.0]
    assert run(50) == 0 and made == [1, 2, 3] and not partial_file.exists()
    found = rows.read(tmp_path / "forward.json")["rows"]
    assert [one["params"]["query_len"] for one in found] == [1, 1, 2, 3, 3]
    assert [one["ours"] for one in found] == [1.0, 1.0, 2.0, 3.0, 3.0]
    # What was measured with other sources is not kept.
    assert run(1) == 3 and made == [1, 2, 3, 1]
    heads.append(dict(HEAD, source_hash="b" * 16))
    assert run(50) == 0 and made == [1, 2, 3, 1, 1, 2, 3]


def test_parts_that_agree_are_merged(tmp_path):
    for name in ALONE:
        part(tmp_path, name)
    rows.write(tmp_path / "results" / "2x-card.json", {**HEAD, "ranks": 2, "rows": across()})
    path = evidence.merge(tmp_path, tmp_path / "results")
    assert path.name == "nvidia-h100-80gb-hbm3.json"
    merged = rows.read(path)
    assert list(merged) == [*HEAD, "tests", "parts", "rows"]
    assert merged["tests"] == {"passed": 25, "failed": 0, "skipped": 5}
    # By part, as the parts are ordered.
    order = ("tests", "forward", "backward", "error", "runtime")
    assert merged["rows"] == [one for name in order for one in ALONE[name]]
    assert rows.read(tmp_path / "results" / "2x-card.json")["rows"] == across()


@pytest.mark.parametrize("change", [{"schema": 2}, {"card": "another"}])
def test_parts_that_disagree_are_not(tmp_path, change):
    part(tmp_path, "forward")
    part(tmp_path, "runtime", **change)
    with pytest.raises(SystemExit, match="disagree"):
        evidence.merge(tmp_path, tmp_path / "results")


def test_parts_that_did_not_run_again_stay_and_say_of_which_source_they_are(tmp_path):
    for name in ALONE:
        part(tmp_path / "before", name)
    path = evidence.merge(tmp_path / "before", tmp_path)
    newer = {"date": "2026-02-01T00:00:00+00:00", "source_hash": "f" * 16}
    again = [row("forward", CALL, 1.0)]
    part(tmp_path / "after", "forward", rows=again, **newer)
    assert evidence.merge(tmp_path / "after", tmp_path) == path
    merged = rows.read(path)
    order = ("tests", "backward", "error", "runtime")
    assert merged["rows"] == [
        *ALONE["tests"], *again, *(one for name in order[1:] for one in ALONE[name])
    ]  # fmt: skip
    assert {name: of["source_hash"] for name, of in merged["parts"].items()} == {
        **dict.fromkeys(order, HEAD["source_hash"]), "forward": newer["source_hash"]
    }  # fmt: skip
    assert merged["date"] == newer["date"] and merged["source_hash"] == newer["source_hash"]
    assert merged["tests"] == {"passed": 25, "failed": 0, "skipped": 5}
    evidence.merge(tmp_path / "before", tmp_path)
    assert rows.read(path) == merged, "what a folder still has from an earlier date replaces nothing"
    text = report.page({"card": merged})
    assert f"source `{newer['source_hash']}`; tests: 5 passed, 0 failed, 1 skipped. Parts: `forward`." in text
    assert "20 passed, 0 failed, 4 skipped. Parts: `tests`, `backward`, `error`, `runtime`." in text
    assert text.index(newer["source_hash"]) < text.index(HEAD["source_hash"])
    assert text.count("older sources") == 2
    merged["parts"]["forward"]["source_hash"] = source.source_hash(ROOT)
    assert report.page({"card": merged}).count("older sources") == 1


def test_a_file_whose_rows_are_of_unknown_parts_is_kept_until_all_have_run_again(tmp_path):
    part(tmp_path, "forward")
    path = tmp_path / "nvidia-h100-80gb-hbm3.json"
    rows.write(path, {**HEAD, "tests": {}, "rows": []})
    before = path.read_bytes()
    missing = r"does not say which rows are of which part.*missing: host, tests, .*endurance$"
    with pytest.raises(SystemExit, match=missing):
        evidence.merge(tmp_path, tmp_path)
    assert path.read_bytes() == before
    for name in evidence.PARTS:
        part(tmp_path, name, rows=ALONE.get(name, []))
    evidence.merge(tmp_path, tmp_path)
    assert list(rows.read(path)["parts"]) == [*evidence.PARTS]


def test_what_several_gpus_did_not_measure_again_stays(tmp_path, monkeypatch):
    def measured(date, source_hash, *chunks):
        """A run of `benchmarks.training`, which writes anew after each of its problems."""
        monkeypatch.setattr(rows, "head", lambda _: {**HEAD, "date": date, "source_hash": source_hash})
        report = rows.Report(tmp_path, "training-")
        for chunk in chunks:
            report.add(of_chunk(chunk, date), ranks=2)
        return rows.read(tmp_path / "training-2x-nvidia-h100-80gb-hbm3.json")

    def of_chunk(chunk, date):
        params = {**RING, "chunk": chunk, "exchange": "peer"}
        speed = {**params, "rounds": 9, "context_parallel": "absent", "what": "step"}
        return [row("training", speed, float(date[0])), row("memory", params, float(chunk))]

    monkeypatch.setattr(rows, "require_own_sources", lambda _: "")
    first, second = ("1st-1", "a" * 16), ("2nd-2", "b" * 16)
    whole = measured(*first, 4096, 8192)
    assert whole["rows"] == of_chunk(4096, "1st-1") + of_chunk(8192, "1st-1") and "parts" not in whole
    merged = measured(*second, 16384, 8192)
    new = of_chunk(16384, "2nd-2") + of_chunk(8192, "2nd-2")
    assert merged["rows"] == of_chunk(4096, "1st-1") + new
    assert {date: (of["source_hash"], of["rows"]) for date, of in merged["parts"].items()} == {
        "1st-1": ("a" * 16, 2), "2nd-2": ("b" * 16, 4)}  # fmt: skip
    assert (merged["date"], merged["source_hash"]) == second
    # What is killed has no chunk.
    merged["rows"].append(row("faults", {"case": "SIGKILL", "ranks": 2, "rings": 3, "devices": 2}, 2.0))
    merged["parts"]["2nd-2"]["rows"] += 1
    text = report.page({"training-2x-card": merged})
    assert f"P = 2, training, 4096 rows a GPU: driver 580.1, CUDA 13.0, 1st-1, source `{'a' * 16}`" in text
    assert f"P = 2, training, 8192, 16384 rows a GPU: driver 580.1, CUDA 13.0, 2nd-2, source `{'b' * 16}`" in text
    again = measured("3rd-3", "b" * 16, 4096)
    assert list(again["parts"]) == ["2nd-2", "3rd-3"] and again["rows"] == new + of_chunk(4096, "3rd-3")


def test_a_page_counts_what_rows_do_not_say(tmp_path):
    """TFLOPS, ratios, shares of the ideal: computed here by hand."""
    for name in ALONE:
        part(tmp_path, name)
    merged = json.loads(evidence.merge(tmp_path, tmp_path).read_text())
    peer = [one | {"ours": 0.9 * one["ours"]} for one in across("peer")]
    of_two = {**HEAD, "ranks": 2, "rows": [*across(context_parallel=2.5), *peer]}
    text = report.page({"card": merged, "2x-card": of_two})
    # 2 * 16 * 4 * 8192^2 * 128 flops, half of them masked, in 2 ms; fa2 takes 1.9 ms, cuDNN 1.
    assert "| 16/4 | 8192 | yes | 2.000 | 274.9 | 0.95 | 0.50 | – |" in text
    # 2.5 times as many in sustained windows of 5 ms; bursts come second.
    assert "| deterministic | 5.000 | 274.9 | – / – | 1.40 / 1.50 | – / – | 0.98 / 0.90 |" in text
    assert "| 2.000e-04 | 2.000e-04 | 2.000e-04 | 1.000 | 1.250 | 0.800 |" in text
    assert "| 8192 | 2 | 600 | 1.000 |" in text and "| 8192 | 8 | 630 | 1.050 |" in text
    # 4 * 32 * 16384^2 * 128 / 2 flops on 2 GPUs in 2 ms; the ideal takes 1.9 ms.
    by_nccl = "| nccl | 8 | 2.000 | 549.8 | 95.0 | 97.4 | 1.11 | 1.25 | 1.50 | 1.05 | 1.10 | absent |"
    by_peer = "| peer | 0 | 1.800 | 610.8 | 105.6 | 108.3 | 1.00 | – | 1.67 | 1.17 | 1.22 | absent |"
    assert text.index(by_peer) < text.index(by_nccl)
    assert "| nccl | 0.000 / 0.010 | 0.900 / 0.900 | 0.200 / 0.200 |" in text
    training = {**RING, "exchange": "xla", "rounds": 7, "what": "step", "framework": "jax"}
    by_jax = row("training", training, 4.0, {"ideal": 3.8, "cudnn_ideal": 3.0})
    text += report.page({"training-jax-2x-card": {**HEAD, "ranks": 2, "rows": [by_jax]}})
    assert "| 2 | 32/8 | 8192 | zigzag | yes | 4.000 | 95.0 | 75.0 |" in text
    assert "performance-training" not in text
    by_peer = {**RING, "exchange": "peer", "rounds": 7, "context_parallel": "absent"}
    of_torch = [row("training", {**by_peer, "what": what}, ms, {"ideal": 3.8})
                for what, ms in (("step", 4.0), ("forward", 1.0), ("backward", 3.1), ("graph", 3.9))]
    text += report.page({"training-2x-card": {**HEAD, "ranks": 2, "rows": of_torch}})
    assert "| zigzag | yes | 4.000 | 1.000 | 3.100 | 95.0 | 97.4 | – | – | – | – | absent |" in text
    assert "(performance-training-across-card.svg)" in text
    assert "performance-across-card.svg" in text and "performance-across-2x" not in text
    assert "25 passed, 0 failed, 5 skipped" in text and "older sources" in text
    for of in (merged, *merged["parts"].values()):
        of["source_hash"] = source.source_hash(ROOT)
    assert "older sources" not in report.page({"card": merged})


def test_the_documented_commands(tmp_path):
    """Those of developer-guide.md, in a tree whose parts have run; running one takes a GPU."""
    pytest.importorskip("matplotlib")
    _, together, one_by_one, *_ = map(commands, code_blocks("docs/developer-guide.md", "sh"))
    (everything, write_page), (one, merge_parts) = together, one_by_one
    assert everything[1:3] == ["-m", "benchmarks.all_parts"]
    assert all_parts.main.make_context("all_parts", everything[3:]).params["parts"] == ()
    assert one[1:3] == ["-m", "benchmarks.evidence"]
    assert evidence.main.make_context("evidence", one[3:]).params["part"] in evidence.PARTS
    guide = (ROOT / "docs" / "developer-guide.md").read_text()
    parts = re.search(r"The parts are (.*?)\.", guide, re.DOTALL)[1]
    assert re.findall(r"`(\w+)`", parts) == [*evidence.PARTS]
    for folder in ("benchmarks", "cmake"):  # in cmake the source hash is made
        ignored = shutil.ignore_patterns("results")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for name in ALONE:
        part(tmp_path / "out", name)
    for python, *arguments in (merge_parts, write_page):
        assert python == "python"
        subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
    docs = tmp_path / "docs"
    assert "25 passed, 0 failed, 5 skipped" in (docs / "performance.md").read_text()
    assert (docs / "performance-nvidia-h100-80gb-hbm3.svg").is_file()
    assert (docs / "performance-backward-nvidia-h100-80gb-hbm3.svg").is_file()


@pytest.mark.parametrize("part", [n for n, (test, _) in evidence.PARTS.items() if test is not Counter])
def test_a_part_takes_one_gpu(monkeypatch, part):
    """Tests of several GPUs would fail on one. They have a command of their own."""
    runs = []
    monkeypatch.setattr(evidence, "_pytest", lambda *run, seconds=0: runs.append(run) or Counter())
    monkeypatch.setattr(evidence, "_shares", lambda *arguments: [arguments])
    evidence.PARTS[part][0]()
    assert runs
    for run in runs:
        assert "not multi_gpu" in " ".join(run) or run in [("tests/unit",), (evidence._SANITIZER,)]
    (several,) = commands(code_blocks("docs/developer-guide.md", "sh")[3])
    assert several[-4:] == ["--require-gpu", "-m", "multi_gpu", "tests"]


def test_tests_that_had_run_when_their_time_was_up_count(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--require-gpu', action='store_true')\n"
    )
    (tmp_path / "test_some.py").write_text(
        "import time\ndef test_one(): pass\ndef test_two(): assert 0\n"
        "def test_three(): time.sleep(300)\n"
    )
    counts = evidence._pytest("-p", "no:cacheprovider", "test_some.py", seconds=9)
    assert counts == {"passed": 1, "failed": 2, "skipped": 0}
