"""The contenders of `benchmarks.scaling` that a CPU can run: every rank's answer, one by one."""

import itertools
import subprocess
import sys

import pytest
from helpers.pages import ROOT, code_blocks, commands

from baracuda_kernels.testing import attention, error_of

pytestmark = pytest.mark.framework("torch")

RANKS, CHUNK = 3, 8


def problem(ranks, causal):
    from benchmarks.across_gpus.problem import Problem

    return Problem(ranks, CHUNK, 4, 2, 16, "zigzag", causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["all_gather", "all_gather_own", "one_gpu"])
def test_others_give_the_answer_of_their_rows(torch, monkeypatch, name, causal):
    from benchmarks.across_gpus import contenders

    ring = problem(RANKS, causal)
    whole = ring.whole(torch.device("cpu"))
    exact, _ = attention(*(x.float().numpy() for x in whole), is_causal=causal)
    seen = []

    def gather(everyone, own):
        """What a collective does: this rank's part is where it must be, the others' are there."""
        keys = (whole.k if len(seen) % 2 == 0 else whole.v)[0].transpose(0, 1)
        assert torch.equal(keys[rank * CHUNK : (rank + 1) * CHUNK], own) and own.is_contiguous()
        everyone.copy_(keys)
        seen.append(rank)

    monkeypatch.setattr(contenders.dist, "all_gather_into_tensor", gather)
    covered = []
    for rank in range(RANKS):
        make = getattr(contenders, name)
        contender = make(ring, whole) if name == "one_gpu" else make(ring, rank, whole)
        with contender.around():
            y = torch.cat(contender.call(), 2)
        assert error_of(y.float().numpy(), exact[:, :, contender.rows])["relative"] < 6e-3
        covered += contender.rows.tolist()
    assert sorted(set(covered)) == list(range(RANKS * CHUNK))
    assert len(seen) == (0 if name == "one_gpu" else 2 * RANKS)


@pytest.mark.parametrize("causal", [False, True])
def test_context_parallel_leaves_nothing_patched(torch, one_rank, causal):
    """Also after a failure inside: the other contenders' attention must be their own."""
    from torch.distributed.device_mesh import init_device_mesh

    from benchmarks.across_gpus import torch_cp

    ring = problem(1, causal)
    whole = ring.whole(torch.device("cpu"))
    mesh = init_device_mesh("cpu", (1,))
    plain = torch.nn.functional.scaled_dot_product_attention
    for form, operands in itertools.product(torch_cp.FORMS, (whole, (*whole, whole.q))):
        contender = torch_cp.context_parallel(ring, 0, operands, mesh, form)
        with pytest.raises(ZeroDivisionError), contender.around():
            assert torch.nn.functional.scaled_dot_product_attention is not plain
            raise ZeroDivisionError
        assert torch.nn.functional.scaled_dot_product_attention is plain


def test_the_documented_commands(torch):
    """Those of developer-guide.md: the launcher is torch's, the options are the script's."""
    from benchmarks import scaling

    launch, page = commands(code_blocks("docs/developer-guide.md", "sh")[4])
    at = launch.index("benchmarks.scaling")
    assert launch[:3] == ["python", "-m", "torch.distributed.run"] and launch[at - 1] == "-m"
    options = scaling._parser().parse_args(launch[at + 1 :])
    assert options.faults and (ROOT / options.out).is_dir()
    assert page == ["python", "-m", "benchmarks.report"]
    subprocess.run([sys.executable, *launch[1 : at - 1], "--help"], check=True)
