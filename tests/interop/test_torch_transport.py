"""The transport over a process group after a failed message."""

import ctypes

import pytest

import baracuda_kernels as bk

pytestmark = pytest.mark.framework("torch")


class Work:
    def __init__(self, log, name, error=None):
        self.log, self.name, self.error = log, name, error

    def wait(self, timeout=None):
        self.log.append(self.name)
        if self.error is not None:
            raise self.error


class Group:
    """Stands in for a process group. Its works fail on request."""

    def __init__(self, log, errors):
        self.log, self.errors = log, list(errors)

    def rank(self):
        return 0

    def size(self):
        return 2

    def _get_backend(self, device):
        return self

    def begin(self, tensors, peer, tag):
        if not self.errors:
            raise RuntimeError("this group has no connections any more")
        return Work(self.log, peer, self.errors.pop(0))

    send = recv = begin


class Buffer:
    nbytes = 8

    def __init__(self):
        self.memory = (ctypes.c_char * 8)()
        self.pointer = ctypes.addressof(self.memory)


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ([RuntimeError("peer closed"), None, None], bk.CommunicatorError),
        ([None, RuntimeError("peer closed"), RuntimeError("later")], bk.CommunicatorError),
        ([KeyboardInterrupt(), RuntimeError("later"), None], KeyboardInterrupt),
    ],
)
def test_every_work_is_waited_for_before_a_failure_is_raised(torch, errors, raised):
    """Every receive is waited for: otherwise it would write into freed memory."""
    from baracuda_kernels.interop.torch._process_group import GroupTransport

    log, buffers = [], [Buffer() for _ in errors]
    transport = GroupTransport(Group(log, errors))
    transport.group_start()
    for i, buffer in enumerate(buffers):
        (transport.send if i == 0 else transport.recv)(buffer, 1, None)
    with pytest.raises(raised) as failure:
        transport.group_end()
    assert len(log) == len(errors)
    if raised is bk.CommunicatorError:
        assert "peer closed" in str(failure.value)
    transport.group_start()
    transport.group_end()
    assert len(log) == len(errors)


@pytest.mark.parametrize("odd", [0, 3])
def test_what_keeps_one_rank_from_joining_is_told_to_all(gloo_ranks, odd):
    """Otherwise they would wait for it in NCCL."""
    answers = gloo_ranks.run({"do": "join_nccl", "odd_rank": odd}, seconds=20)
    for rank, answer in enumerate(answers):
        assert "max_ctas: got 99" in answer["message"], answer
        assert answer["error"] == ("InvalidProblemError" if rank == odd else "CommunicatorError")
        assert rank == odd or f"rank {odd} of 4 cannot join" in answer["message"]


def test_ctrl_c_ends_a_wait_for_another_rank(gloo_ranks):
    """In the exchange and in the comparison before it. The waits of the others end too."""
    for where in ("comparison", "exchange"):
        first, *others = gloo_ranks.run({"do": "interrupted", "where": where}, seconds=30)
        assert first["raised"] == "KeyboardInterrupt" and first["seconds"] < 1.5, first
        for answer in (first, *others):
            assert answer["later"] == "CommunicatorError", answer
            assert answer["later_seconds"] < 2, answer
    for answer in gloo_ranks.run({"do": "within", "what": "sdpa"}):
        assert answer["relative"] <= 4e-6, answer
