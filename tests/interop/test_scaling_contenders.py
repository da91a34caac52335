"""The contenders of `benchmarks.scaling` that a CPU can run: every rank's answer, one by one."""

import importlib
import itertools
import subprocess
import sys

import pytest
from helpers.pages import ROOT, code_blocks, commands

from baracuda_kernels.testing import attention, error_of

pytestmark = pytest.mark.framework("torch")

RANKS, CHUNK = 3, 8


@pytest.fixture(scope="module")
def across(torch):
    """Modules of benchmarks.across_gpus, by name."""
    return lambda name: importlib.import_module(f"benchmarks.across_gpus.{name}")


@pytest.fixture
def problem(across):
    return lambda layout, causal, ranks=RANKS: across("problem").Problem(
        ranks, CHUNK, 4, 2, 16, layout, causal
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["all_gather", "all_gather_own", "one_gpu"])
def test_others_give_the_answer_of_their_rows(torch, across, problem, monkeypatch, name, causal):
    contenders = across("contenders")
    problem = problem("zigzag", causal)
    whole = problem.whole(torch.device("cpu"))
    exact, _ = attention(*(x.float().numpy() for x in whole), is_causal=causal)
    ranks = range(RANKS)
    seen = []

    def gather(everyone, own):
        """What a collective does: this rank's part is where it must be, the others' are there."""
        keys = (whole.k if len(seen) % 2 == 0 else whole.v)[0].transpose(0, 1)
        assert torch.equal(keys[rank * CHUNK : (rank + 1) * CHUNK], own) and own.is_contiguous()
        everyone.copy_(keys)
        seen.append(rank)

    monkeypatch.setattr(contenders.dist, "all_gather_into_tensor", gather)
    covered = []
    for rank in ranks:
        make = getattr(contenders, name)
        contender = make(problem, whole) if name == "one_gpu" else make(problem, rank, whole)
        with contender.around():
            y = torch.cat(contender.call(), 2)
        assert error_of(y.float().numpy(), exact[:, :, contender.rows])["relative"] < 6e-3
        covered += contender.rows.tolist()
    assert sorted(set(covered)) == list(range(RANKS * CHUNK))
    assert len(seen) == (0 if name == "one_gpu" else 2 * RANKS)


@pytest.mark.parametrize("causal", [False, True])
def test_context_parallel_leaves_nothing_patched(torch, across, problem, one_rank, causal):
    """Also after a failure inside: the other contenders' attention must be their own."""
    from torch.distributed.device_mesh import init_device_mesh

    torch_cp = across("torch_cp")
    problem = problem("zigzag", causal, 1)
    whole = problem.whole(torch.device("cpu"))
    mesh = init_device_mesh("cpu", (1,))
    plain = torch.nn.functional.scaled_dot_product_attention
    for form, operands in itertools.product(torch_cp.FORMS, (whole, (*whole, whole.q))):
        contender = torch_cp.context_parallel(problem, 0, operands, mesh, form)
        with pytest.raises(ZeroDivisionError), contender.around():
            assert torch.nn.functional.scaled_dot_product_attention is not plain
            raise ZeroDivisionError
        assert torch.nn.functional.scaled_dot_product_attention is plain


def test_the_documented_commands(across):
    """Those of developer-guide.md: the launcher is torch's, the options are the script's."""
    scaling = importlib.import_module("benchmarks.scaling")
    launch, page = commands(code_blocks("docs/developer-guide.md", "sh")[4])
    at = launch.index("benchmarks.scaling")
    assert launch[:3] == ["python", "-m", "torch.distributed.run"] and launch[at - 1] == "-m"
    options = scaling._parser().parse_args(launch[at + 1 :])
    assert options.faults and (ROOT / options.out).is_dir()
    assert page == ["python", "-m", "benchmarks.report"]
    subprocess.run([sys.executable, *launch[1 : at - 1], "--help"], check=True)
