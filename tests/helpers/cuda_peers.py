"""The peer exchange of one rank on a GPU through the C ABI, in which waits can be left out."""

from __future__ import annotations

import ctypes as ct
from typing import Any

from . import ring_abi as abi
from .c_headers import function_type, structure
from .cuda_ring import check
from .host_peers import REQUIRED, Options, declare

# The words of a rank, by their offset.
KINDS = ("granted", "full", *["arrived"] * 4, "read", "idle")

_WaitFn, _WriteFn, _GateFn = (
    function_type("peer_ops", name) for name in ("wait_word", "write_word", "gate")
)
PeerOps = structure("peer_ops", wait_word=_WaitFn, write_word=_WriteFn, gate=_GateFn)


class CudaPeers:
    """The peer exchange of one rank's endpoint. Making it connects the ranks (collective).

    Parameters
    ----------
    dropped : int
        The wait for a word, counted from 0 after `watch`, that is left out; -1: none.
    pause : callable, optional
        Called with a stream before every word that is set on it, and after every wait for a word,
        once `watch` has been called.
    """

    def __init__(
        self, endpoint: Any, wait: int, *, dropped: int = -1, pause: Any = None
    ) -> None:
        self.lib = declare(abi.library())
        self.lib.baracuda_cuda_peer_ops.restype = ct.POINTER(PeerOps)
        own = self.lib.baracuda_cuda_peer_ops().contents
        self.ops = PeerOps.from_buffer_copy(own)
        self.waited: list[str] = []
        self._watching = False

        def leaves_out(word: int) -> bool:
            if not self._watching:
                return False
            self.waited.append(KINDS[word % 4096 // 64 % 8])
            return len(self.waited) - 1 == dropped

        def wait_word(stream: int, word: int, mask: int) -> int:
            status = abi.OK if leaves_out(word) else own.wait_word(stream, word, mask)
            if self._watching and pause is not None:
                pause(stream)
            return status

        def write_word(stream: int, word: int, value: int) -> int:
            if self._watching and pause is not None and value != 0:
                pause(stream)
            return own.write_word(stream, word, value)

        def gate(stream: int, word: int, mask: int, signal: int | None) -> int:
            if not leaves_out(word):
                return own.gate(stream, word, mask, signal)
            status = own.write_word(stream, word, 0)
            if status == abi.OK and signal:
                status = own.write_word(stream, signal, 1)
            return status

        self.ops.wait_word = _WaitFn(wait_word)
        self.ops.write_word = _WriteFn(write_word)
        self.ops.gate = _GateFn(gate)
        self.ops.write_words = None  # words are written one by one
        self.handle = ct.c_void_p()
        options = Options(
            ct.sizeof(Options), ct.cast(ct.pointer(self.ops), ct.c_void_p), REQUIRED, wait, 10.0
        )
        check(self.lib.baracuda_peer_connect(ct.byref(endpoint), options, self.handle))

    def watch(self) -> None:
        self._watching = True

    def register(self, *tensors: Any) -> None:
        for x in tensors:
            check(self.lib.baracuda_peer_register(self.handle, x.data_ptr(), x.nbytes))

    def abort(self) -> None:
        """End the waits of every rank."""
        reason = abi.Error(status=abi.ABORTED, call=b"test", message=b"a run does not end")
        self.lib.baracuda_peer_abort(self.handle, reason)

    def close(self) -> None:
        check(self.lib.baracuda_peer_close(self.handle, 10.0, None))
