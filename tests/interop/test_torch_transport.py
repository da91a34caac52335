"""What the transport over a process group does when a message fails."""

import ctypes

import pytest

import baracuda_kernels as bk

pytestmark = pytest.mark.framework("torch")


class Work:
    def __init__(self, log, name, error=None):
        self.log, self.name, self.error = log, name, error

    def wait(self):
        self.log.append(self.name)
        if self.error is not None:
            raise self.error


class Group:
    """A stand-in for a process group, whose works fail as they are told."""

    def __init__(self, log, errors):
        self.log, self.errors = log, list(errors)

    def rank(self):
        return 0

    def size(self):
        return 2

    def _get_backend(self, device):
        return self

    def begin(self, tensors, peer, tag):
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
    """A receive that is not waited for writes into memory that its owner has freed."""
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


def test_rank_0_tells_the_others_that_it_made_no_id(torch, monkeypatch):
    """They would wait for the id else."""
    from baracuda_kernels._core import _communicator
    from baracuda_kernels.interop import _torch_rendezvous as rendezvous

    sent = []
    monkeypatch.setattr(rendezvous, "id_to_send", lambda: bk.UnsupportedError("nccl: none found"))
    monkeypatch.setattr(rendezvous.dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(rendezvous.dist, "get_global_rank", lambda group, rank: rank)
    for rank, error in ((0, bk.UnsupportedError), (1, bk.CommunicatorError)):
        monkeypatch.setattr(rendezvous.dist, "get_rank", lambda group, rank=rank: rank)

        def broadcast(box, src, group):
            if box[0] is None:
                box[0] = sent[0]
            sent.append(box[0])

        monkeypatch.setattr(rendezvous.dist, "broadcast_object_list", broadcast)
        with pytest.raises(error, match="none found"):
            rendezvous.rendezvous(object(), 0)
    assert _communicator.received_id(b"\0" * 128, 1) == bk.UniqueId(b"\0" * 128)
