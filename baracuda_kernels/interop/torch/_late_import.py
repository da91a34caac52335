"""Puts the checks of transformers' models in place if transformers is imported within a context."""

from __future__ import annotations

import functools
import sys
import threading
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from baracuda_kernels.interop.torch._entered import innermost

_MODULE = "transformers.modeling_utils"


def check_models() -> None:
    """Check the calls of transformers' models in contexts: of those made so far and of later ones.

    If transformers has not been imported, nothing is imported now.
    """
    if _MODULE in sys.modules:
        from baracuda_kernels.interop.transformers import _models

        _models.enter_context()
        return
    with _lock:
        if _watch not in sys.meta_path:
            sys.meta_path.insert(0, _watch)


class _Watch(MetaPathFinder):
    """Finds the module as the other finders do, and acts when it has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        found = (
            finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self
        )
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                _check_from_first_model(module.PreTrainedModel)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _check_from_first_model(base: Any) -> None:
    """Call `check_models` when the first model is made in a context: by then all of transformers
    that the checks need can be imported."""
    original = base.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **options: Any) -> None:
        if innermost() is not None:
            base.__init__ = original
            check_models()
        original(self, *args, **options)

    base.__init__ = init


_lock = threading.Lock()  # threads may enter their first contexts at once
_watch = _Watch()
