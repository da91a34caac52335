"""The MPI page and example, as processes of mpiexec."""

import re
import shutil
import sysconfig
import textwrap

import pytest
from helpers.pages import ROOT, run_page, run_program

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
