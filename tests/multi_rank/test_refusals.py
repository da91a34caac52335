"""What one rank of an NCCL ring refuses ends on the others at once, on a GPU."""

import pytest
from helpers.rank_pool import RankPool

pytestmark = [pytest.mark.gpu, pytest.mark.multi_rank]


@pytest.fixture
def ring(torch):
    ranks = RankPool(3)
    yield ranks
    ranks.close()


def test_before_the_others_have_begun(ring):
    for _ in range(2):
        for rank, answer in enumerate(ring.run({"do": "refuse", "late": False}, seconds=90)):
            assert answer["error"] == "InvalidProblemError", answer
            assert answer["message"].startswith("k: " if rank == 1 else "rank 1: k: "), answer
            assert answer["seconds"] < 1 and answer["state"] == "healthy", answer
            assert answer["right"], answer


def test_where_the_others_have_begun(ring):
    for rank, answer in enumerate(ring.run({"do": "refuse", "late": True}, seconds=90)):
        assert answer["error"] == "InvalidProblemError", answer
        assert "k: got" in answer["message"] and (rank == 1 or "rank 1: " in answer["message"])
        # The others had waited for a second before.
        assert answer["seconds"] < 3 and answer["state"] in ("failed", "aborted"), answer
        assert answer["again"] == "CommunicatorError", answer
