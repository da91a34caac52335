"""A launch that fails on one of two ranks, in a backward: both end with a typed error, and soon."""

import pytest
from helpers.rank_pool import RankPool

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank]

ODD = 1


@pytest.fixture(scope="module")
def pair(torch):
    ranks = RankPool(2)
    yield ranks
    ranks.close()


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "options",
    [{"exchange": "nccl"}, *({"exchange": "peer", "wait": w} for w in ("event", "value", "gate"))],
    ids=lambda options: "-".join(options.values()),
)
def test_a_backward_of_two_ranks_ends_on_both(pair, options, step, graph):
    pair.join(**{"wait": "", **options})
    healthy = pair.run({"do": "run_backward", "register": options["exchange"] == "peer"})
    assert [answer["state"] for answer in healthy] == ["healthy"] * 2
    # Both ranks have their answers of that run before one of them fails in the next.
    answers = pair.run({"do": "fail_launch", "odd": ODD, "step": step, "graph": graph})
    for rank, answer in enumerate(answers):
        if rank == ODD:
            assert answer["error"] == "CudaError" and "launch" in answer["message"], answer
        else:
            assert answer["error"] == "CommunicatorError", answer
            assert f"rank {ODD} ended the ring" in answer["message"], answer
            assert "launch" in answer["message"], answer
        assert answer["seconds"] < 10, answer  # the deadlines are 20 seconds and more
        assert answer["state"] in ("failed", "aborted"), answer
        assert answer["again"] == "CommunicatorError", answer
