"""The ops and kernels of the library, and the kernel that a problem gets. Needs no GPU.

An op is registered once, by an :class:`OpSpec`. The packages below ``baracuda_kernels.ops`` register the
built-in ops. Other packages use the entry-point group ``baracuda_kernels.ops``; an entry point loads to an
:class:`OpSpec`, or to a function that returns one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from baracuda_kernels._core._enums import ArchSku, Direction, OpKind, kinds
from baracuda_kernels._core._errors import InvalidProblemError, UnsupportedError
from baracuda_kernels._core._selection import (
    Architecture,
    Candidate,
    Explanation,
    OpSpec,
    ProblemOption,
)
from baracuda_kernels._core._sku import GUARANTEE_FIELDS, SKU_FIELDS, KernelSku, PlanPreference

__all__ = [
    "ENTRY_POINT_GROUP", "Architecture", "Candidate", "Explanation", "OpKind", "OpSpec",
    "ProblemOption", "explain", "get", "left_out", "ops", "register", "skus", "specs",
]

ENTRY_POINT_GROUP = "baracuda_kernels.ops"

_specs: dict[str, OpSpec] = {}
_lock = threading.RLock()
_left_out: dict[str, str] = {}
_discovered = False

# The filters of skus(), each with the type that parses its value.
_FILTERS = {**SKU_FIELDS, **GUARANTEE_FIELDS}
del _FILTERS["precision_guarantee"]  # by its fields


def register(spec: OpSpec) -> None:
    """Add an op. Registering the same spec again changes nothing.

    Parameters
    ----------
    spec : OpSpec

    Raises
    ------
    InvalidProblemError
        Not an OpSpec, or another op has the name or the descriptor type.
    """
    if not isinstance(spec, OpSpec):
        raise InvalidProblemError(f"spec: got {type(spec).__name__}, must be an OpSpec")
    with _lock:
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
    global _discovered
    with _lock:
        if _discovered:
            return
        _discovered = True
        # Slow to import, and only needed here.
        import importlib.metadata
        import logging
        import pkgutil

        package = importlib.import_module("baracuda_kernels.ops")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            try:
                loaded = entry.load()
                spec = loaded if isinstance(loaded, OpSpec) else loaded()
                if isinstance(spec, OpSpec):
                    tuple(spec.skus())  # `skus` and `info` call this later
                register(spec)
            # Any error, also sys.exit: a broken plug-in must not break the library.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                reason = f"{type(error).__name__}: {error}"
                _left_out[f"{entry.name} = {entry.value}"] = reason
                logging.getLogger("baracuda_kernels").warning(
                    "op entry point %r was not registered: %s", entry.value, reason
                )


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
    try:
        return _specs[name]
    except KeyError:
        raise UnsupportedError(f"op: got {name!r}, must be one of {', '.join(ops())}") from None


def skus(**filters: Any) -> list[KernelSku]:
    """Every kernel of every op, in each op's order of preference.

    Parameters
    ----------
    **filters
        Any field of :class:`KernelSku` or :class:`PrecisionGuarantee`, each with an enum member or its
        name: ``skus(op="RING_ATTENTION", direction="FORWARD")``. An ``op`` may be a number.

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
        value = kind.parse(value)
    return lambda sku: _field(sku, name) == value


def _op_filter(value: Any) -> Callable[[KernelSku], bool]:
    if isinstance(value, int) and not isinstance(value, (bool, OpKind)):
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
    descriptor : an op's descriptor
    arch : ArchSku, str, int or tuple, optional
        "host", or a compute capability such as "sm_90", "9.0", 90 or (9, 0). By default that of the
        current GPU, or the host without one.
    preference : PlanPreference, optional
    direction : Direction or str, default FORWARD
        ``FORWARD`` for the op's outputs, ``BACKWARD`` for its gradients.

    Raises
    ------
    InvalidProblemError
        The descriptor is invalid, or no registered op has its type.
    UnsupportedError
        The op does not have that direction.
    """
    _discover()
    for spec in _specs.values():
        if type(descriptor) is spec.descriptor_type:
            return spec.explain(descriptor, arch, preference, direction)
    types = ", ".join(sorted(s.descriptor_type.__name__ for s in _specs.values()))
    raise InvalidProblemError(
        f"descriptor: got {type(descriptor).__name__}, must be one of {types}")
