"""`benchmarks.scaling` with two ranks on one GPU: it runs whole, and what it reports is right."""

import json
import os
from pathlib import Path

import pytest
from helpers.pages import ROOT, run_program, torchrun

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank, pytest.mark.endurance]

RANKS = 2


def test_answers_speed_and_memory_of_two_ranks(torch, tmp_path):
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    run_program(
        Path("-m"), ROOT, "benchmarks.scaling", "--no-faults", "--no-gradients", "--chunk", "512",
        "--heads", "4", "--kv-heads", "2", "--layout", "zigzag", "--rounds", "1",
        "--out", str(tmp_path), launcher=torchrun(RANKS, one_gpu=True), timeout=180,
        environment={"PYTHONPATH": path, "NCCL_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    (output,) = tmp_path.glob(f"{RANKS}x-*.json")
    report = json.loads(output.read_text())
    rows = report["rows"]
    assert report["ranks"] == RANKS
    kinds = [(row["name"], row["params"]["causal"]) for row in rows]
    # Of each problem; two ways, by peer and by NCCL, and each of those eager and as a graph.
    numbers = {"scaling_error": 1, "scaling_memory": 1, "exchange": 2, "scaling": 4,
               "scaling_step": 2 * RANKS}  # fmt: skip
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
