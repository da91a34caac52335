"""What `benchmarks.scaling` writes, as a page and a picture; its parts that need no GPU."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _load(name):
    """A module of benchmarks/, whatever folder the tests were started in."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")


evidence, report = _load("evidence"), _load("report")

CARD = "NVIDIA H100 80GB HBM3"
SHAPE = {"dtype": "bf16", "heads": 32, "kv_heads": 8, "head_dim": 128}


def _rows(ranks, layout="zigzag", causal=True, context_parallel=2.5):
    p = {**SHAPE, "ranks": ranks, "chunk": 8192, "layout": layout, "causal": causal}

    def row(name, unit, ours, peers, **more):
        params = {**p, **more}
        return {"name": name, "params": params, "unit": unit, "ours": ours, "peers": peers}

    peers = {"ideal": 1.9, "all_gather": 3.0, "all_gather_own": 2.1}
    form = "absent"
    if context_parallel:
        peers["context_parallel"] = context_parallel
        form = "cuDNN, allgather, GQA"
    return [
        row("scaling_memory", "bytes", 2**28, {"one_rank": 2**28, "other": 3 * 2**20}),
        *(
            row("scaling_step", "ms", 0.01 * s, {"compute": 0.9, "exchange": 0.2 - 0.2 * s}, step=s)
            for s in range(2)
        ),
        row("scaling_error", "relative", 2e-3, {"one_gpu": 1.6e-3, "all_gather": 2.4e-3}),
        row("scaling", "ms", 2.0, peers, what="eager", max_ctas=8, context_parallel=form),
        row("scaling", "ms", 1.95, peers, what="graph", max_ctas=8, context_parallel=form),
    ]


def _result(ranks, rows, **changes):
    head = {"schema": 1, "ranks": ranks, "card": CARD, "driver": "580.1", "cuda": "13.0"}
    head |= {"date": "2026-01-01T00:00:00+00:00", "source_hash": "0123456789abcdef"}
    return {**head, **changes, "rows": rows}


@pytest.fixture
def results():
    """Of two and of four GPUs, the four first by name, as a sort of names may have it."""
    fault = {
        "name": "faults",
        "params": {"case": "SIGSTOP", "ranks": 2, "rings": 3, "devices": 2},
        "unit": "s",
        "ours": 2.21,
        "peers": {"timeout": 2.0},
    }
    card = evidence.slug(CARD)
    both = _rows(2, causal=False) + _rows(2, "contiguous", context_parallel=None) + _rows(2)
    return {
        f"4x-{card}": _result(4, _rows(4)),
        f"2x-{card}": _result(2, [*both, fault]),
    }


def test_the_page_says_what_the_rows_say(results):
    text = report.page(results)
    assert text.count(f"## Across GPUs: {CARD}") == 1
    assert text.index("- P = 2") < text.index("- P = 4")
    assert "source `0123456789abcdef`; **of older sources than `src/` holds now**." in text
    # 4 * 32 * 16384^2 * 128 / 2 flops on 2 GPUs in 2 ms; the ideal takes 1.9 ms.
    form = "cuDNN/allgather/GQA"
    line = (
        f"| 2 | 8192 | zigzag | yes | nccl | 8 | 2.000 | 549.8 | 95.0 | 97.4 | – | 1.25 | 1.50 | 1.05 | {form} |"
    )
    assert line in text
    assert (
        "| 2 | 8192 | contiguous | yes | nccl | 8 | 2.000 | 549.8 | 95.0 | 97.4 | – | – | 1.50 | 1.05 | absent |"
        in text
    )
    assert "| 2 | 8192 | zigzag | no | nccl | 8 | 2.000 | 1099.5 | 95.0 |" in text
    assert "| 4 | 8192 | zigzag | yes | nccl | 8 | 2.000 | 1099.5 | 95.0 |" in text
    steps = "| 2 | 8192 | zigzag | yes | nccl | 0.000 / 0.010 | 0.900 / 0.900 | 0.200 / 0.000 |"
    assert steps in text
    assert "| 2 | 8192 | zigzag | yes | 256.0 | 256.0 | 3.0 |" in text
    assert "| 2 | 8192 | zigzag | yes | 2.000e-03 | 1.600e-03 | – | 2.400e-03 | 1.250 |" in text
    assert "| SIGSTOP | 2 | 3 | 2.21 | 2.0 |" in text
    places = [text.index(f"| 2 | 8192 | {x} | nccl | 8 | 2.000 |") for x in
              ("zigzag | yes", "zigzag | no", "contiguous | yes")]  # fmt: skip
    assert places == sorted(places)


def test_what_moves_the_chunks_is_told_apart(results):
    """By peer and by NCCL: speed, steps and the exchange itself."""
    rows = []
    for exchange, factor, sms, speeds in (("nccl", 1.0, 8, (58, 61, 50)), ("peer", 0.9, 0, (321, 343, 255))):
        for row in _rows(2):
            if row["name"] not in ("scaling", "scaling_step"):
                continue
            row["params"] |= {"exchange": exchange, "max_ctas": sms}
            row["ours"] *= factor
            row["peers"] |= {"steps": 1.8}
            rows.append(row)
        peers = dict(zip(("alone", "late"), speeds[1:], strict=True))
        params = rows[0]["params"] | {"exchange": exchange, "max_ctas": sms, "bytes": 33554432}
        rows.append({"name": "exchange", "params": params, "unit": "GB/s", "ours": speeds[0],
                     "peers": peers})  # fmt: skip
    text = report.page({f"2x-{evidence.slug(CARD)}": _result(2, rows)})
    by_peer = "| 2 | 8192 | zigzag | yes | peer | 0 | 1.800 | 610.8 | 105.6 | 108.3 | 1.00 |"
    by_nccl = "| 2 | 8192 | zigzag | yes | nccl | 8 | 2.000 | 549.8 | 95.0 | 97.4 | 1.11 |"
    assert text.index(by_peer) < text.index(by_nccl)
    assert "| 2 | 8192 | zigzag | yes | peer | 0 | 33.6 | 321 | 343 | 255 |" in text
    assert "| 2 | 8192 | zigzag | yes | nccl | 8 | 33.6 | 58 | 61 | 50 |" in text
    assert "| 2 | 8192 | zigzag | yes | peer | 0.000 / 0.009 |" in text


def test_the_picture_has_both_ways(tmp_path):
    pytest.importorskip("matplotlib")
    rows = _rows(2)
    for row in _rows(2):
        rows.append(row | {"params": row["params"] | {"exchange": "peer"}})
    plot = _load("across_gpus.plot")
    plot.draw([_result(2, rows)], tmp_path / "both.svg")
    drawn = (tmp_path / "both.svg").read_text()
    assert "ring by NCCL, zigzag" in drawn and "ring, zigzag" in drawn
    plot.draw([_result(2, _rows(2))], tmp_path / "one.svg")
    assert "ring by NCCL" not in (tmp_path / "one.svg").read_text()


def test_fresh_results_are_not_called_old(results):
    fresh = {name: {**r, "source_hash": report.source_hash(ROOT)} for name, r in results.items()}
    assert "older sources" not in report.page(fresh)


def test_a_file_across_gpus_is_found_out_when_its_page_or_picture_is_old(
    tmp_path, monkeypatch, results
):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "source_hash", lambda root: "0123456789abcdef")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "docs" / "performance.md")
    for name, result in results.items():
        evidence.write_json(tmp_path / f"{name}.json", result)
    assert report.main([]) == 0
    picture = tmp_path / "docs" / f"performance-across-{evidence.slug(CARD)}.svg"
    drawn = picture.read_text()
    for label in ("ring, zigzag", "PyTorch context_parallel", "all-gather + our kernel", "P = 4"):
        assert label in drawn
    assert report.main(["--check"]) == 0
    name, result = next(iter(results.items()))
    result["rows"][-1]["ours"] *= 2
    evidence.write_json(tmp_path / f"{name}.json", result)
    assert report.main(["--check"]) == 1


def test_merging_evidence_leaves_a_file_across_gpus_alone(tmp_path, results):
    name, result = next(iter(results.items()))
    evidence.write_json(tmp_path / f"{name}.json", result)
    part = {**_result(1, []), "part": "ring", "tests": {"passed": 1, "failed": 0, "skipped": 0}}
    del part["ranks"]
    evidence.write_json(tmp_path / "ring.json", part)
    evidence.merge(tmp_path, tmp_path)
    assert json.loads((tmp_path / f"{name}.json").read_text()) == result
    assert json.loads((tmp_path / f"{evidence.slug(CARD)}.json").read_text())["rows"] == []
