"""What one rank alone meets in a call of BatchSharder: the others raise it, and the ring goes on.

And groups that do not fit together, of more ranks than there are processes.
"""

import random
import threading
import types

import pytest

pytestmark = [pytest.mark.framework("torch"), pytest.mark.framework("transformers")]

ODD = 1
TASK = {"model": "llama", "layout": "zigzag", "cp": 2, "rows": 24, "odd_rank": ODD}
GONE = ("OSError", "CommunicatorError", "shards: OSError: the file has gone")


def run(ranks, task):
    answers = ranks.run(TASK | task, seconds=240)  # the first one imports transformers
    assert all(answer["seconds"] < 20 for answer in answers), answers
    assert len({answer["count"] for answer in answers}) == 1  # the ranks still meet
    return answers


@pytest.mark.parametrize(
    ("what", "own", "others", "message"),
    [
        ("an iterable", *GONE),
        ("batches that are cut meanwhile", *GONE),
        ("no parts", "InvalidProblemError", "InvalidProblemError", "shards: got none, must be"),
        ("no mapping", "AttributeError", "CommunicatorError", "shards: AttributeError: 'NoneType'"),
    ],
)
def test_a_count_that_fails_on_one_rank(gloo_ranks, what, own, others, message):
    answers = run(gloo_ranks, {"do": "count_fails", "what": what})
    assert answers[ODD]["error"] == own, answers
    assert answers[ODD]["message"] in answers[0]["message"]
    for answer in answers[:ODD] + answers[ODD + 1 :]:
        assert answer["error"] == others and message in answer["message"], answer
        assert answer["message"].startswith("rank "), answer


def test_a_count_without_labels_on_one_ring(gloo_ranks):
    for answer in run(gloo_ranks, {"do": "count_fails", "what": "no labels on one ring"}):
        assert answer["error"] == "InvalidProblemError", answer
        assert "must have shift_labels: the batch needs labels" in answer["message"], answer


def test_a_count_on_one_ring_and_a_batch_on_another(gloo_ranks):
    for answer in run(gloo_ranks, {"do": "count_fails", "what": "fewer batches"}):
        assert answer["error"] == "InvalidProblemError", answer
        assert "got calls of count and shard at one time" in answer["message"], answer


def test_a_count_that_no_host_waits_for(gloo_ranks):
    """As on CUDA: the ranks of the ring raise from their next call of the model."""
    task = {"do": "count_fails", "what": "an iterable", "host_waits": False}
    answers = run(gloo_ranks, task)
    names = [answer["error"] for answer in answers]
    assert names == ["CommunicatorError", "OSError", "", ""], answers
    assert GONE[2] in answers[0]["message"], answers


@pytest.mark.parametrize("following", ["backward", "another forward"])
@pytest.mark.parametrize(
    ("what", "own", "others", "message"),
    [
        (
            "other rows",
            "InvalidProblemError",
            "InvalidProblemError",
            "outputs: got logits of shape",
        ),
        ("out of memory", "OutOfMemoryError", "CommunicatorError", "loss: OutOfMemoryError: CUDA"),
    ],
)
def test_a_loss_that_fails_on_one_rank(gloo_ranks, what, own, others, message, following):
    answers = run(gloo_ranks, {"do": "loss_fails", "what": what, "next": following})
    assert [answer["error"] for answer in answers] == [others, own, "", ""], answers
    assert f"rank {ODD}: {message}" in answers[0]["message"], answers


def test_the_error_of_a_call_is_known_to_the_other_ranks(torch, one_rank):
    from baracuda_kernels.errors import CommunicatorError
    from baracuda_kernels.interop.transformers import _rounds

    with pytest.raises(CommunicatorError) as met, _rounds.failures(one_rank):
        raise RuntimeError("connection closed")
    wrapped = OSError("no batch")
    wrapped.__cause__ = met.value
    assert _rounds.is_known(met.value) and _rounds.is_known(wrapped)
    assert not _rounds.is_known(OSError("no batch"))


class Group:
    """A process group whose ranks are threads."""

    def __init__(self, ranks):
        self.ranks, self._said = ranks, {}
        self._barrier = threading.Barrier(len(ranks), timeout=20)

    def size(self):
        return len(self.ranks)

    def gather(self, rank, message):
        self._said[rank] = message
        self._barrier.wait()
        said = [self._said[other] for other in self.ranks]
        self._barrier.wait()
        return said


@pytest.fixture
def agreed(torch, monkeypatch):
    """The error of every rank if these rings and data groups cut one batch; empty if there is
    none."""
    from baracuda_kernels.interop.transformers import _rounds, _same_batch

    me = threading.local()
    distributed = {"get_rank": lambda: me.rank, "get_process_group_ranks": lambda x: x.ranks}
    monkeypatch.setattr(_same_batch, "dist", types.SimpleNamespace(**distributed))
    monkeypatch.setattr(_rounds, "_gather", lambda group, said: group.gather(me.rank, said))

    def agree(rings, groups):
        found = {}

        def rank_of(rank, ring, data):
            me.rank = rank
            try:
                _same_batch.agree(ring, data if data.size() > 1 else None, {}, None)
                found[rank] = ""
            except Exception as error:  # noqa: BLE001 - a failed barrier too
                found[rank] = f"{type(error).__name__}: {error}"

        by_rank = [{rank: x for x in map(Group, some) for rank in x.ranks}
                   for some in (rings, groups)]  # fmt: skip
        threads = [threading.Thread(target=rank_of, args=(rank, ring, by_rank[1][rank]))
                   for rank, ring in by_rank[0].items()]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[rank] for rank in sorted(found)]

    return agree


def test_data_groups_that_join_other_rings(agreed):
    answers = agreed([[0, 1], [2, 3], [4, 5]], [[0, 2], [1, 4], [3, 5]])
    for answer in answers:
        assert answer.startswith("InvalidProblemError: data_group: got other groups on"), answers


@pytest.mark.parametrize(
    ("rings", "groups"),
    [
        ([[0, 1], [2, 3]], [[0, 2], [1, 3]]),
        # Beside another parallelism of 2 ranks, so that a data group is smaller than 8 / 2.
        ([[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ([[0, 1], [2, 3]], [[0], [1], [2], [3]]),
        # A mesh of ranks in another order, whose groups have the ranks sorted.
        ([[0, 3], [1, 2]], [[0, 2], [1, 3]]),
    ],
)
def test_data_groups_of_one_rank_of_each_ring(agreed, rings, groups):
    assert set(agreed(rings, groups)) == {""}


def test_any_groups_pass_on_all_joined_ranks_or_on_none(agreed):
    """Random rings and data groups, against the definition: one rank of each ring in each data
    group, among the ranks that they join."""
    draw = random.Random(3)
    passed = 0
    for _ in range(300):
        rings, groups = (_partition(draw, 6) for _ in range(2))
        answers = agreed(rings, groups)
        for part in _joined(rings, groups):
            mine, theirs = ([x for x in some if x[0] in part] for some in (rings, groups))
            fits = all(len({*x} & {*y}) == 1 for x in mine for y in theirs)
            assert {not answers[rank] for rank in part} == {fits}, (rings, groups, answers)
            assert fits or all("InvalidProblemError: " in answers[rank] for rank in part)
            passed += fits and len(mine) > 1 and len(theirs) > 1
    assert passed > 3


def _partition(draw, count):
    """Groups of one or two sizes, each with its ranks in order."""
    ranks = draw.sample(range(count), count)
    groups = []
    size = draw.choice([1, 2, 3])
    while ranks:
        taken = size if draw.random() < 0.85 else draw.choice([1, 2, 3])
        groups.append(sorted(ranks[:taken]))
        ranks = ranks[taken:]
    return groups


def _joined(rings, groups):
    """The sets of ranks that rings and data groups join, directly or by others."""
    parts = [{*x} for x in rings]
    for group in groups:
        touched = [x for x in parts if x & {*group}]
        parts = [x for x in parts if not x & {*group}] + [set().union(*touched)]
    return parts
