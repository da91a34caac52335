"""The MPI page and example, as processes of mpiexec."""

import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap

import pytest
from helpers.pages import ROOT, code_blocks, commands, run_page, run_program

pytestmark = pytest.mark.framework("mpi4py")

RANKS = 4


@pytest.fixture(scope="module")
def mpiexec(request):
    """The command that starts the ranks, from an MPI on PATH or the one from PyPI beside Python."""
    command = shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")
    if command is None:
        if "mpi4py" in request.config.getoption("--require-framework"):
            pytest.fail("--require-framework: mpiexec is not there", pytrace=False)
        pytest.skip("mpiexec is not there")
    return [command, "-n", str(RANKS)]


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_the_example_on_the_host(mpiexec, tmp_path, layout):
    said = run_program(
        ROOT / "examples" / "mpirun_ring.py",
        tmp_path,
        "--layout",
        layout,
        "--rows",
        "96",
        launcher=mpiexec,
    )
    errors = dict(re.findall(r"rank (\d) of 4: host, relative error (\S+)", said))
    assert sorted(errors) == ["0", "1", "2", "3"]
    assert all(float(error) < 2e-6 for error in errors.values()), said


def test_the_page_runs_as_written(mpiexec, tmp_path):
    check = """
    from baracuda_kernels import reference
    whole = [np.concatenate(x) for x in zip(*ring.comm.allgather((k[None], v[None])))]
    whole = [bk.unshard(list(x), sequence_layout="zigzag") for x in whole]
    positions = bk.positions(rows, ring.rank, ring.world_size, "zigzag")
    exact, _ = reference.attention(q, *whole, is_causal=True, q_positions=positions)
    assert reference.error_of(y, exact)["relative"] < 2e-6
    agree = ring.comm.gather(True)
    print(agree)
    """
    said = run_page("mpi.md", tmp_path, append=textwrap.dedent(check), launcher=mpiexec)
    assert said.count("True") == RANKS


def test_the_commands_on_the_page(mpiexec):
    """Those of mpi.md: the first as it stands, of the second that it starts the same program."""
    on_host, on_gpus = commands(code_blocks("docs/mpi.md", "sh")[0])
    launcher, program = on_host[:3], on_host[3:]
    assert launcher == ["mpiexec", "-n", "4"] and program[0] == "python"
    assert on_gpus[3:] == [*program, "--device", "cuda"]
    done = subprocess.run(
        [mpiexec[0], *launcher[1:], sys.executable, *program[1:]],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=120, input="",
    )  # fmt: skip
    errors = re.findall(r"rank \d of 4: host, relative error (\S+)", done.stdout)
    assert len(errors) == 4 and all(float(error) < 2e-6 for error in errors)


# By the shell, since every rank needs a NCCL_HOSTID of its own on a shared GPU.
OWN_HOST = ["sh", "-c", 'NCCL_HOSTID=rank-${PMI_RANK:-$OMPI_COMM_WORLD_RANK} exec "$@"', "sh"]

# What Open MPI asks of those who are root in a container.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.mark.gpu
@pytest.mark.multi_rank
@pytest.mark.framework("cupy")
def test_the_example_on_a_gpu(mpiexec, tmp_path):
    said = run_program(
        ROOT / "examples" / "mpirun_ring.py",
        tmp_path,
        *("--device", "cuda"),
        launcher=[*mpiexec, *OWN_HOST],
        environment={"NCCL_SOCKET_IFNAME": "lo", **AS_ROOT},
        timeout=240,
    )
    errors = re.findall(r"rank \d of 4: \w+, relative error (\S+)", said)
    assert len(errors) == RANKS and all(float(error) < 2e-3 for error in errors), said
