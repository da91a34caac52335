"""The contenders across GPUs that a CPU can run, with a thread for each rank."""

import itertools
import pathlib
import subprocess
import sys
import threading

import pytest
from helpers.pages import ROOT, code_blocks, commands
from helpers.rank_threads import on_ranks

from baracuda_kernels.testing import attention, attention_backward, error_of

pytestmark = pytest.mark.framework("torch")

RANKS, CHUNK = 3, 8
HEADS = 2  # of K and V, so many ranks can share them


def problem(ranks, causal):
    from benchmarks.across_gpus.problem import Problem

    return Problem(ranks, CHUNK, 4, 2, 16, "zigzag", causal)


class Collectives:
    """Those of `torch.distributed` for ranks that are threads."""

    def __init__(self, torch, ranks):
        self.torch, self.ranks, self.given = torch, ranks, [None] * ranks
        self.barrier = threading.Barrier(ranks)

    def every(self, mine):
        """What each rank gave to this call."""
        self.given[RANK.number] = mine
        self.barrier.wait(60)
        found = list(self.given)
        self.barrier.wait(60)
        return found

    def all_gather_into_tensor(self, into, mine):
        assert mine.is_contiguous() and into.is_contiguous()
        into.view(self.ranks, *mine.shape).copy_(self.torch.stack(self.every(mine)))

    def all_to_all_single(self, into, mine):
        assert mine.is_contiguous() and into.is_contiguous()
        into.copy_(self.torch.stack([x[RANK.number] for x in self.every(mine.clone())]))

    def reduce_scatter_tensor(self, into, mine):
        assert mine.is_contiguous() and into.is_contiguous()
        parts = [x.view(self.ranks, *into.shape)[RANK.number].float() for x in self.every(mine)]
        into.copy_(sum(parts))
        self.barrier.wait(60)


RANK = threading.local()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["all_gather", "all_gather_own", "ulysses"])
def test_others_give_the_answer_of_their_rows(torch, monkeypatch, name, causal):
    gradients = [False, True] if name != "all_gather" else [False]
    ring = problem(HEADS, causal)
    whole, dy = ring.whole(torch.device("cpu")), ring.gathered("dy", torch.device("cpu"))
    arrays = [x.float().numpy() for x in (*whole, dy)]
    exact, _ = attention(*arrays[:3], is_causal=causal)
    of_gradients = attention_backward(*arrays, is_causal=causal)
    for of_step in gradients:
        covered = [[], []]
        for contender, found in answers(
            torch, monkeypatch, ring, name, whole, dy if of_step else None
        ):
            rows, keys = contender.rows, contender.key_rows
            keys = rows if keys is None else keys
            want = [(rows, exact)]
            if of_step:
                want = list(zip((rows, keys, keys), of_gradients, strict=True))
            else:
                found = [torch.cat(found, 2)]
            for x, (at, right) in zip(found, want, strict=True):
                assert error_of(x.float().numpy(), right[:, :, at])["relative"] < 1e-2
            covered = [covered[0] + rows.tolist(), covered[1] + keys.tolist()]
        assert [sorted(x) for x in covered] == [list(range(HEADS * CHUNK))] * 2


def answers(torch, monkeypatch, ring, name, whole, dy):
    """Every rank's contender, and what its second call returned: the first leaves sums behind."""
    from benchmarks.across_gpus import gathered, ulysses

    world = Collectives(torch, ring.ranks)
    monkeypatch.setattr(gathered, "dist", world)
    monkeypatch.setattr(ulysses, "dist", world)

    def work(rank):
        RANK.number = rank
        if name == "ulysses":
            contender = ulysses.ulysses(ring, rank, whole, dy)[name]
        else:
            contender = getattr(gathered, name)(ring, rank, whole, *([] if dy is None else [dy]))
        contender.call()
        return contender, contender.call()

    return on_ranks(ring.ranks, work)


@pytest.mark.parametrize("causal", [False, True])
def test_one_gpu_gives_the_whole_answer(torch, causal):
    from benchmarks.across_gpus.contenders import one_gpu

    ring = problem(RANKS, causal)
    whole = ring.whole(torch.device("cpu"))
    exact, _ = attention(*(x.float().numpy() for x in whole), is_causal=causal)
    contender = one_gpu(ring, whole)
    (y,) = contender.call()
    assert error_of(y.float().numpy(), exact)["relative"] < 6e-3
    assert contender.rows.tolist() == list(range(RANKS * CHUNK))


def test_heads_that_cannot_be_shared_have_no_ulysses(torch):
    from benchmarks.across_gpus.ulysses import ulysses

    ring = problem(RANKS, causal=True)
    assert ulysses(ring, 0, ring.whole(torch.device("cpu"))) == {}


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


def test_the_programs_across_gpus_take_their_options(torch):
    """Those that `benchmarks.all_parts` starts."""
    from benchmarks import all_parts, scaling
    from benchmarks.across_gpus.ranks import parser

    found = all_parts.across(2, pathlib.Path("results"))
    for name, made in (("scaling", scaling._parser()), ("training", parser("training", [1]))):
        at = found[name].index(f"benchmarks.{name}")
        assert made.parse_args(found[name][at + 1 :]).out == pathlib.Path("results").resolve()
        assert found[name][2:5] == ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
