"""The ops and kernels of the library, and the kernel that a problem gets. Needs no GPU.

An op is registered once, by an :class:`OpSpec`. The packages below ``baracuda_kernels.ops``
register the built-in ops. Other packages use the entry-point group ``baracuda_kernels.ops``; an
entry point loads to an :class:`OpSpec`, or to a function that returns one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from baracuda_kernels._core._architecture import Architecture
from baracuda_kernels._core._enums import ArchSku, Direction, OpKind, kinds
from baracuda_kernels._core._errors import InvalidProblemError, UnsupportedError
from baracuda_kernels._core._selection import Candidate, Explanation, OpSpec, ProblemOption
from baracuda_kernels._core._sku import GUARANTEE_FIELDS, SKU_FIELDS, KernelSku, PlanPreference

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "ENTRY_POINT_GROUP", "Architecture", "Candidate", "Explanation", "OpKind", "OpSpec",
    "ProblemOption", "explain", "get", "left_out", "ops", "register", "skus", "specs",
]

ENTRY_POINT_GROUP = "baracuda_kernels.ops"

_specs: dict[str, OpSpec] = {}
_left_out: dict[str, str] = {}
# Entry points that are registered or left out.
_settled: set[str] = set()
# Whether all entry points are in _settled.
_discovered = False
# Held while _specs, _left_out or _settled is changed, and never while foreign code runs.
_lock = threading.Lock()
_this_thread = threading.local()

# The filters of skus(), each with the type that parses its value.
_FILTERS = {**SKU_FIELDS, **GUARANTEE_FIELDS}
del _FILTERS["precision_guarantee"]  # by its fields


def register(spec: OpSpec) -> None:
    """Add an op. Registering the same spec again changes nothing.

    Parameters
    ----------
    spec : OpSpec
        Its ``skus()`` is called, twice.

    Raises
    ------
    InvalidProblemError
        Not an OpSpec, another op has the name or the descriptor type, or ``skus()`` does not return
        the same pairs of a family's name and a KernelSku at each call.
    """
    if not isinstance(spec, OpSpec):
        raise InvalidProblemError(f"spec: got {type(spec).__name__}, must be an OpSpec")
    if _specs.get(spec.name) is spec:
        return
    _check_skus(spec)
    with _lock:
        _add(spec)


def _check_skus(spec: OpSpec) -> None:
    """Refuse what `skus`, `info` and `explain` would stumble over later, for every op."""
    found = tuple(spec.skus())
    for pair in found:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
                and isinstance(pair[1], KernelSku)):
            raise InvalidProblemError(
                f"skus: got {pair!r} from {spec.name!r}, must be a tuple of a family's name and a "
                "KernelSku")
    again = tuple(spec.skus())
    if again != found:
        raise InvalidProblemError(
            f"skus: got {len(found)} kernels from {spec.name!r} at the first call and "
            f"{len(again)} or others at the second, must be the same at each call")


def _add(spec: OpSpec) -> None:
    """Add a checked spec. The caller holds `_lock`."""
    known = _specs.get(spec.name)
    if known is spec:
        return
    if known is not None:
        raise InvalidProblemError(
            f"spec: got the name {spec.name!r}, must be one that no other op has")
    for other in _specs.values():
        if other.descriptor_type is spec.descriptor_type:
            raise InvalidProblemError(
                f"spec: got {spec.descriptor_type.__name__}, must be a descriptor type that no "
                f"other op has ({other.name!r} has it)")
    _specs[spec.name] = spec


def _discover() -> None:
    """Import the built-in ops and load all entry points that are not settled yet.

    No lock is held while foreign code runs: a plug-in may register itself, or ask the registry,
    while one thread imports it and others wait for that import. So several threads may load the
    same entry point at once, and the first result counts. A call that ends early, as by Ctrl-C,
    leaves the rest to the next one.
    """
    global _discovered
    # A plug-in that asks while this thread loads it gets the ops that there are so far.
    if _discovered or getattr(_this_thread, "discovers", False):
        return
    # Slow to import, and only needed here.
    import importlib.metadata
    import pkgutil

    _this_thread.discovers = True
    try:
        package = importlib.import_module("baracuda_kernels.ops")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        entries = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        settled = [_load(entry) for entry in entries]
        _discovered = all(settled)
    finally:
        _this_thread.discovers = False


def _load(entry: EntryPoint) -> bool:
    """Register an entry point's op or leave it out. False if its module is still being imported."""
    name = f"{entry.name} = {entry.value}"
    if name in _settled:
        return True
    reason = ""
    try:
        loaded = entry.load()
        spec = loaded if isinstance(loaded, OpSpec) else loaded()
        if not isinstance(spec, OpSpec):
            raise InvalidProblemError(f"spec: got {type(spec).__name__}, must be an OpSpec")
        _check_skus(spec)
        with _lock:
            if name not in _settled:
                _add(spec)
                _settled.add(name)
    except KeyboardInterrupt:
        raise
    # Any error, also sys.exit: a broken plug-in must not break the library.
    except BaseException as error:  # noqa: BLE001
        if _being_imported(getattr(entry, "module", "")):
            return False
        reason = f"{type(error).__name__}: {error}"
    if reason:
        with _lock:
            if name in _settled:
                return True
            _settled.add(name)
            _left_out[name] = reason
        import logging

        logging.getLogger("baracuda_kernels").warning(
            "op entry point %r was not registered: %s", entry.value, reason
        )
    return True


def _being_imported(name: str) -> bool:
    """Whether a module or a package above it is being imported, so that it lacks names."""
    while name:
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            return True
        name = name.rpartition(".")[0]
    return False


def left_out() -> dict[str, str]:
    """The entry points that could not be registered, each with the reason. ``info`` shows them."""
    _discover()
    return dict(_left_out)


def ops() -> list[str]:
    """Names of all ops, sorted."""
    _discover()
    return sorted(_specs)


def specs() -> tuple[OpSpec, ...]:
    """All ops in the order in which they were registered, the library's own first."""
    _discover()
    return tuple(_specs.values())


def get(name: str) -> OpSpec:
    """The op with that name.

    Parameters
    ----------
    name : str
        Such as ``"ring_attention"``.

    Raises
    ------
    UnsupportedError
        There is no such op; the message lists the names.
    """
    _discover()
    if not isinstance(name, str) or name not in _specs:
        raise UnsupportedError(f"op: got {name!r}, must be one of {', '.join(ops())}")
    return _specs[name]


def skus(**filters: Any) -> list[KernelSku]:
    """Every kernel of every op, in each op's order of preference.

    Parameters
    ----------
    **filters
        Any field of :class:`KernelSku` or :class:`PrecisionGuarantee`, each with an enum member or
        its name: ``skus(op="RING_ATTENTION", direction="FORWARD")``. An ``op`` may be a number.

    Raises
    ------
    InvalidProblemError
        An unknown filter or value; the message lists the valid ones.
    """
    return [sku for _, _, sku in named_skus(**filters)]


def named_skus(**filters: Any) -> list[tuple[str, str, KernelSku]]:
    """As :func:`skus`, as (op name, family name, SKU)."""
    _discover()
    wanted = [_filter(name, value) for name, value in filters.items()]
    return [(op, family, sku) for op in ops() for family, sku in _specs[op].skus()
            if all(fits(sku) for fits in wanted)]


def _filter(name: str, value: Any) -> Callable[[KernelSku], bool]:
    """A test of a SKU: whether its field of that name has the value."""
    if name not in _FILTERS:
        raise InvalidProblemError(f"filter: got {name!r}, must be one of {', '.join(_FILTERS)}")
    kind: Any = _FILTERS[name]
    if kind is bool:
        if not isinstance(value, bool):
            raise InvalidProblemError(f"{name}: got {value!r}, must be a bool")
    elif kind is OpKind:
        return _op_filter(value)
    elif value is not None:
        value = kind.parse(value, name)
    return lambda sku: _field(sku, name) == value


def _op_filter(value: Any) -> Callable[[KernelSku], bool]:
    if isinstance(value, int) and not isinstance(value, (bool, Enum)):
        return lambda sku: sku.op == value
    name = value.name if isinstance(value, OpKind) else str(value).upper()
    named = [kind[name] for kind in kinds() if name in kind.__members__
             and (not isinstance(value, OpKind) or isinstance(value, kind))]
    if not named:
        names = ", ".join(name for kind in kinds() for name in kind.__members__)
        raise InvalidProblemError(f"op: got {value!r}, must be a number or one of {names}")
    # Ops of different categories may have the same number.
    return lambda sku: any(sku.category is op.category and sku.op == op for op in named)


def _field(sku: KernelSku, name: str) -> Any:
    return getattr(sku if hasattr(sku, name) else sku.precision_guarantee, name)


def explain(
    descriptor: Any,
    arch: Architecture | ArchSku | str | int | tuple[int, int] | None = None,
    preference: PlanPreference | None = None,
    direction: Direction | str = Direction.FORWARD,
) -> Explanation:
    """Which kernel ``select`` picks for a descriptor, and why not the others.

    Parameters
    ----------
    descriptor : an op's descriptor, or of a subclass
    arch : ArchSku, str, int or tuple, optional
        "host", or a compute capability such as "sm_90", "9.0", 90 or (9, 0). By default that of the
        current GPU, or the host without one.
    preference : PlanPreference, optional
    direction : Direction or str, default FORWARD
        ``FORWARD`` for the op's outputs, ``BACKWARD`` for its gradients.

    Raises
    ------
    InvalidProblemError
        The descriptor is invalid, no registered op has its type, or the architecture or direction
        is unknown.
    UnsupportedError
        The op does not have that direction.
    """
    by_type = {spec.descriptor_type: spec for spec in specs()}
    for kind in type(descriptor).__mro__:
        if kind in by_type:
            return by_type[kind].explain(descriptor, arch, preference, direction)
    types = ", ".join(sorted(kind.__name__ for kind in by_type))
    raise InvalidProblemError(
        f"descriptor: got {type(descriptor).__name__}, must be one of {types}")
