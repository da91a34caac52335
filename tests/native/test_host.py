"""The host family through the C ABI, with the baseline and the best instruction set."""

import ctypes as ct
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ring_abi as abi

FOLDER = Path(__file__).parent
SOURCES = FOLDER.parents[1] / "src" / "cuda"


def run(code, *arguments, **environment):
    return subprocess.run([sys.executable, "-c", code, *arguments], check=False,
                          capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


@pytest.mark.parametrize("isa", ["baseline", ""], ids=["baseline", "best"])
def test_against_float64(isa):
    path = abi.library()._name
    result = subprocess.run(
        [sys.executable, FOLDER / "check_host.py", path], check=False,
        capture_output=True, text=True, timeout=300, env={**os.environ, "BARACUDA_HOST_ISA": isa})
    assert result.returncode == 0 and "ran check_bits" in result.stdout, result
    assert not isa or result.stdout.split()[1] == isa


SELECT = """
import baracuda_kernels as bk
try:
    bk.FlashSdpaPlan.select(bk.Stream.host(), bk.FlashSdpaDescriptor(1, 1, 4, 4, 8))
except bk.InvalidProblemError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "value"),
    [("BARACUDA_HOST_ISA", "avx1024"), ("BARACUDA_HOST_ISA", "AVX2"),
     ("BARACUDA_NUM_THREADS", "0"), ("BARACUDA_NUM_THREADS", "many"),
     ("BARACUDA_NUM_THREADS", "4x"), ("BARACUDA_NUM_THREADS", "100000"),
     ("BARACUDA_NUM_THREADS", "-1"), ("BARACUDA_NUM_THREADS", "2.5")],
)
def test_bad_values_of_the_environment_are_refused(name, value):
    result = run(SELECT, **{name: value})
    assert result.returncode == 0, result
    assert name in result.stdout and value in result.stdout and "must be" in result.stdout


@pytest.mark.parametrize(
    ("name", "value"), [("BARACUDA_HOST_ISA", "baseline"), ("BARACUDA_NUM_THREADS", "3"),
                        ("BARACUDA_HOST_ISA", ""), ("BARACUDA_NUM_THREADS", "")])
def test_good_values_are_not(name, value):
    result = run(SELECT, **{name: value})
    assert (result.returncode, result.stdout) == (0, ""), result


# Of a process in /pod/app; None: the file is missing.
QUOTAS = [
    ("0::/", {"": "max 100000"}, 0),
    ("0::/", {"": "150000 100000"}, 1.5),
    ("0::/", {}, 0),
    ("0::/", {"": "nonsense"}, 0),
    ("0::/pod/app", {"pod/app": "max 100000", "pod": "200000 100000"}, 2),
    ("0::/pod/app", {"pod/app": "50000 100000", "pod": "200000 100000"}, 0.5),
    ("0::/pod/app", {"": "100000 50000"}, 2),
    ("12:memory:/x\n3:cpuset,cpu,cpuacct:/pod", {"cpu/pod": (300000, 100000)}, 3),
    ("12:cpuset:/pod", {"cpu/pod": (300000, 100000)}, 0),
    ("3:cpu:/pod", {"cpu/pod": (-1, 100000), "cpu": (100000, 100000)}, 1),
    ("garbage", {"": "150000 100000"}, 0),
]


@pytest.mark.parametrize(("membership", "files", "expected"), QUOTAS)
def test_quotas_of_control_groups(tmp_path, membership, files, expected):
    lib = ct.CDLL(abi.build_helper(
        "quota.cpp", f"-I{SOURCES}", str(SOURCES / "attention/forward/host/cpu_quota.cpp")))
    lib.quota.restype = ct.c_double
    lib.quota.argtypes = [ct.c_char_p] * 2
    root = tmp_path / "root"
    for folder, content in files.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            (root / folder / "cpu.max").write_text(content + "\n")
        else:
            (root / folder / "cpu.cfs_quota_us").write_text(f"{content[0]}\n")
            (root / folder / "cpu.cfs_period_us").write_text(f"{content[1]}\n")
    (tmp_path / "cgroup").write_text(membership + "\n")
    assert lib.quota(str(tmp_path / "cgroup").encode(), str(root).encode()) == expected

