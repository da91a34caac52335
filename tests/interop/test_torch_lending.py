"""When a process group's own NCCL communicator carries the ring, and when it cannot."""

from pathlib import Path

import pytest

from baracuda_kernels.errors import UnsupportedError

pytestmark = pytest.mark.framework("torch")


class Backend:
    """A NCCL backend of a group, whose communicator is made (a handle) or not (0)."""

    def __init__(self, handle):
        self._comm_ptr = lambda: handle


class BackendOfAnOldTorch:
    """One without the method that gives the handle."""


class Group:
    def __init__(self, backend):
        self._get_backend = lambda device: backend


@pytest.fixture
def libraries(torch, monkeypatch, tmp_path):
    """Paths of the libnccl used here and of another; the process has loaded those in `loaded`."""
    from baracuda_kernels._core import _nccl_library
    from baracuda_kernels.interop import _torch_rendezvous

    paths = {name: str(tmp_path / f"libnccl.so.{name}") for name in ("ours", "other")}
    for path in paths.values():
        Path(path).touch()
    loaded = {paths["ours"]}
    monkeypatch.setattr(_nccl_library, "library_path", lambda: paths["ours"])
    monkeypatch.setattr(_torch_rendezvous, "_loaded_nccl", lambda: loaded)
    return paths, loaded


def handle_of(backend):
    from baracuda_kernels.interop import _torch_rendezvous

    return _torch_rendezvous.handle(Group(backend), 0)


def lends(torch, backend):
    from baracuda_kernels.interop.torch import _process_group

    return _process_group._lends(Group(backend), torch.device("cuda", 0))


def test_a_communicator_that_is_made(torch, libraries):
    assert handle_of(Backend(4096)) == 4096
    assert lends(torch, Backend(4096))


def test_a_communicator_that_the_first_collective_will_make(torch, libraries):
    with pytest.raises(UnsupportedError, match="not made yet"):
        handle_of(Backend(0))
    assert lends(torch, Backend(0))


def test_a_torch_that_gives_no_handle(torch, libraries):
    with pytest.raises(UnsupportedError, match="does not give the NCCL handle"):
        handle_of(BackendOfAnOldTorch())
    assert not lends(torch, BackendOfAnOldTorch())


@pytest.mark.parametrize("names", [[], ["other"], ["ours", "other"]])
def test_a_process_with_another_libnccl(torch, libraries, names):
    paths, loaded = libraries
    loaded.clear()
    loaded.update(paths[name] for name in names)
    with pytest.raises(UnsupportedError, match="borrow: got True, must be False: torch's NCCL is not"):
        handle_of(Backend(4096))
    assert not lends(torch, Backend(4096))
