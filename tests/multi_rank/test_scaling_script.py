"""The benchmarks across GPUs with ranks that share one: they run whole, and report what is right."""

import json
import os
from pathlib import Path

import pytest
from helpers.pages import ROOT, run_program, torchrun

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank, pytest.mark.endurance]

RANKS = [2, 4]  # 8 K/V heads can be shared by all of them


def report_of(module, ranks, folder, *arguments):
    """What the benchmark writes of 512 rows a rank."""
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    run_program(
        Path("-m"), ROOT, f"benchmarks.{module}", "--chunk", "512", "--heads", "16", "--kv-heads",
        "8", "--rounds", "1", "--out", str(folder), *arguments,
        launcher=torchrun(ranks, one_gpu=True), timeout=180,
        environment={"PYTHONPATH": path, "NCCL_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    (output,) = folder.glob(f"*{ranks}x-*.json")
    report = json.loads(output.read_text())
    assert report["ranks"] == ranks
    return report["rows"]


@pytest.mark.parametrize("ranks", RANKS)
def test_answers_speed_and_memory(torch, tmp_path, ranks):
    rows = report_of(
        "scaling", ranks, tmp_path, "--no-faults", "--no-gradients", "--layout", "zigzag"
    )
    kinds = [(row["name"], row["params"]["causal"]) for row in rows]
    # Of each problem; two ways, by peer and by NCCL, and each of those eager and as a graph.
    numbers = {"scaling_error": 1, "scaling_memory": 1, "exchange": 2, "scaling": 4,
               "scaling_step": 2 * ranks}  # fmt: skip
    for kind, number in numbers.items():
        assert [kinds.count((kind, causal)) for causal in (True, False)] == [number] * 2, kind
    for row in rows:
        assert row["ours"] > 0 or row["name"] == "scaling_step"
        if row["name"] == "scaling":
            others = {"all_gather", "all_gather_own", "context_parallel", "ulysses"}
            others |= {"torch_op"} if row["params"]["what"] == "eager" else set()
            assert row["peers"].keys() == {"ideal", "steps", *others}
            assert row["params"]["exchange"] in ("peer", "nccl")
            assert (row["params"]["max_ctas"] == 0) == (row["params"]["exchange"] == "peer")
        if row["name"] == "scaling_error":
            assert row["ours"] < 1.1 * row["peers"]["one_gpu"]
        if row["name"] == "scaling_memory":
            assert row["ours"] == row["peers"]["one_rank"]


@pytest.mark.parametrize("ranks", RANKS)
def test_training_beside_the_others(torch, tmp_path, ranks):
    rows = report_of("training", ranks, tmp_path, "--layout", "striped")
    kinds = [(row["name"], row["params"].get("what"), row["params"]["causal"]) for row in rows]
    timed = [("training", what) for what in ("step", "forward", "backward", "graph")]
    for causal in (True, False):
        for kind in (("memory", None), *timed):
            assert kinds.count((*kind, causal)) == 1, kind
    for row in rows:
        if row["params"].get("what") == "graph":
            assert row["peers"].keys() == {"ideal"}
        others = {"context_parallel", "ulysses", "all_gather_own"}
        if row["params"].get("what") == "step":
            assert row["peers"].keys() - {"ring_flash_attention"} == {"ideal", *others}
