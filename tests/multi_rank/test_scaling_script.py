"""`benchmarks.scaling` with two ranks on one GPU: it runs whole, and what it reports is right."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank, pytest.mark.endurance]

_ROOT = Path(__file__).parents[2]
_RANKS = 2


@pytest.fixture
def report(torch, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "benchmarks.scaling", "--out", str(tmp_path), "--no-faults"),
        *("--no-gradients", "--chunk", "512", "--heads", "4", "--kv-heads", "2", "--layout", "zigzag"),
        *("--rounds", "1"),
    ]
    processes = []
    for rank in range(_RANKS):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "WORLD_SIZE": str(_RANKS),
            # Lets NCCL take two ranks on one GPU; see helpers.rank_pool.
            "NCCL_HOSTID": f"rank-{rank}",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        with (tmp_path / f"log-{rank}.txt").open("w") as log:
            processes.append(
                subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=log, stderr=log)
            )
    codes = []
    try:
        for process in processes:
            try:
                codes.append(process.wait(120))
            except subprocess.TimeoutExpired:
                codes.append(None)
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join((tmp_path / f"log-{rank}.txt").read_text()[-4000:] for rank in range(_RANKS))
    assert codes == [0] * _RANKS, logs
    (output,) = tmp_path.glob(f"{_RANKS}x-*.json")
    return json.loads(output.read_text())


def test_answers_speed_and_memory_of_two_ranks(report):
    rows = report["rows"]
    assert report["ranks"] == _RANKS
    kinds = [(row["name"], row["params"]["causal"]) for row in rows]
    for causal in (True, False):
        assert kinds.count(("scaling_error", causal)) == 1
        assert kinds.count(("scaling_memory", causal)) == 1
        # By peer and by NCCL.
        assert kinds.count(("exchange", causal)) == 2
        assert kinds.count(("scaling", causal)) == 4
        assert kinds.count(("scaling_step", causal)) == 2 * _RANKS
    for row in rows:
        assert row["ours"] > 0 or row["name"] == "scaling_step"
        if row["name"] == "scaling":
            others = {"all_gather", "all_gather_own", "context_parallel"}
            others |= {"torch_op"} if row["params"]["what"] == "eager" else set()
            assert row["peers"].keys() == {"ideal", "steps", *others}
            assert row["params"]["exchange"] in ("peer", "nccl")
            assert (row["params"]["max_ctas"] == 0) == (row["params"]["exchange"] == "peer")
        if row["name"] == "scaling_error":
            assert row["ours"] < 1.1 * row["peers"]["one_gpu"]
        if row["name"] == "scaling_memory":
            assert row["ours"] == row["peers"]["one_rank"]
