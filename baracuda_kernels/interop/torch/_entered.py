"""Which contexts of `context_parallel` a thread is in, and what must be computed again in them."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from types import FrameType
from typing import Any

import torch

from baracuda_kernels.errors import UnsupportedError
from baracuda_kernels.interop.torch._refusal import tell


class _Thread(threading.local):
    def __init__(self) -> None:
        self.modes: list[Any] = []
        self.guards: list[Any] = []  # that of _below.py for each mode
        self.repeated: list[_Repeated] = []  # those that run now


_thread = _Thread()

# Autograd's threads compute checkpointed layers again. They inherit this thread-local entry from
# the thread that called backward. The entry is set only if this torch can remove it again: a thread
# that ends with the entry may hang.
_INHERITED = "baracuda_context_parallel"
_stash = getattr(torch._C, "_stash_obj_in_tls", None)
_remove = getattr(torch._C, "_remove_obj_from_tls", None)


def enter(mode: Any, guard: Any) -> None:
    """Make a context this thread's innermost one. `guard`: what `leave` returns."""
    _thread.modes.append(mode)
    _thread.guards.append(guard)
    _bequeath()


def leave() -> Any:
    """End this thread's innermost context; the guard of its `enter`."""
    _thread.modes.pop()
    _bequeath()
    return _thread.guards.pop()


def entered() -> Any:
    """This thread's innermost context, or None."""
    return _thread.modes[-1] if _thread.modes else None


def innermost() -> Any:
    """This thread's innermost context; in a thread of autograd, that of the thread that called
    backward."""
    if _thread.modes:
        return _thread.modes[-1]
    if torch._C._is_key_in_tls(_INHERITED):
        return torch._C._get_obj_in_tls(_INHERITED)
    return None


def _bequeath() -> None:
    """Let autograd's threads inherit this thread's innermost context."""
    if _stash is None or _remove is None:
        return
    if _thread.modes:
        _stash(_INHERITED, _thread.modes[-1])
    else:
        _remove(_INHERITED)


def note_call(group_name: str, layout: str, device: torch.device) -> None:
    """Note a forward call of a ring, if a reentrant activation checkpoint will repeat it.

    Such a checkpoint (``use_reentrant=True``) keeps nothing of its first forward that the second
    one must fit. If the second one runs outside of the context, its attention sees only the local
    rows. So the calls of both are counted.
    """
    call = group_name, layout
    for one in _thread.repeated:
        one.found[call] += 1
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return  # the first forward of such a checkpoint runs under no_grad
    if innermost() is None:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # The checkpoints of PyTorch, and of libraries that follow its pattern.
        code = frame.f_code
        if code.co_name == "forward" and code.co_varnames[:1] == ("ctx",):
            _expect(call, frame.f_locals["ctx"], device)
        frame = frame.f_back


def _expect(call: tuple[str, str], ctx: Any, device: torch.device) -> None:
    function = getattr(ctx, "run_function", None)
    if function is None:
        return
    if not isinstance(function, _Repeated):
        function = ctx.run_function = _Repeated(function, device)
    function.expected[call] += 1


class _Repeated:
    """The second forward of a reentrant checkpoint. It raises if a ring gets fewer calls than in
    the first forward."""

    def __init__(self, function: Any, device: torch.device) -> None:
        self._function, self._device = function, device
        # The number of calls, by group and layout.
        self.expected: Counter[tuple[str, str]] = Counter()
        self.found: Counter[tuple[str, str]] = Counter()

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.found.clear()
        _thread.repeated.append(self)
        try:
            result = self._function(*args, **options)
        finally:
            _thread.repeated.remove(self)
        for (group_name, layout), count in self.expected.items():
            if self.found[group_name, layout] < count:
                error = UnsupportedError(
                    "backward: got a checkpointed forward that was computed again outside of its "
                    "context_parallel, must be called within it: the second forward saw only the "
                    "rows of this rank, or others"
                )
                tell(group_name, error, self._device)
                raise error
        return result
