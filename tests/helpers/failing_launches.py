"""Makes the launches of one rank of the installed package's rings fail, by the program's table."""

from __future__ import annotations

import contextlib
import ctypes as ct
import mmap
from collections.abc import Iterator
from typing import Any

from . import ring_abi as abi

_PROGRAMS = {
    "forward": "baracuda_attention_ring_program",
    "backward": "baracuda_attention_backward_ring_program",
}


@contextlib.contextmanager
def failing_launches(direction: str, rank: int, step: int) -> Iterator[None]:
    """Launches of `rank` fail with a CUDA error from `step` on, those of the other ranks do not."""
    entry = ct.CDLL(abi.package_library())[_PROGRAMS[direction]]
    entry.restype = ct.c_void_p
    place = entry() + abi.Program.launch.offset
    real_address = ct.c_void_p.from_address(place).value
    assert real_address is not None
    real = abi.ProgramFn(real_address)

    def launch(problem: Any, at: Any) -> int:
        if at.contents.rank == rank and at.contents.step >= step:
            return abi.CUDA_ERROR
        return int(real(problem, at))

    replaced = abi.ProgramFn(launch)
    _store(place, ct.cast(replaced, ct.c_void_p).value)
    try:
        yield
    finally:
        _store(place, real_address)


def _store(place: int, value: int | None) -> None:
    """Writes a pointer into memory that the loader has made read-only."""
    page = place & -mmap.PAGESIZE
    pages = ct.c_void_p(page), ct.c_size_t(2 * mmap.PAGESIZE)
    protect = ct.CDLL(None, use_errno=True).mprotect
    assert protect(*pages, mmap.PROT_READ | mmap.PROT_WRITE) == 0, ct.get_errno()
    ct.c_void_p.from_address(place).value = value
