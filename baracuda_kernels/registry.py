"""Which ops and kernels there are, and which one a problem gets. Needs no GPU.

An op is registered once, by an :class:`OpSpec`: the built-in ones by the packages below
``baracuda_kernels.ops``, others by the entry-point group ``baracuda_kernels.ops`` (an entry point
loads to an :class:`OpSpec`, or to a function that returns one).
"""

from __future__ import annotations

import logging
import pkgutil
import threading

from baracuda_kernels._core._enums import (
    ArchSku,
    AttentionKind,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
)
from baracuda_kernels._core._errors import InvalidProblemError, UnsupportedError
from baracuda_kernels._core._selection import Architecture, Candidate, Explanation, OpSpec
from baracuda_kernels._core._sku import KernelSku, PlanPreference

__all__ = [
    "Architecture", "Candidate", "ENTRY_POINT_GROUP", "Explanation", "OpSpec", "explain", "get",
    "ops", "register", "skus",
]

ENTRY_POINT_GROUP = "baracuda_kernels.ops"

_log = logging.getLogger("baracuda_kernels")
_specs: dict[str, OpSpec] = {}
_lock = threading.RLock()
_discovered = False

# Every field of a KernelSku or its guarantee, with the enum that reads a filter's value.
_FILTERS = {
    "category": OpCategory, "op": AttentionKind, "element": ElementKind,
    "aux_element": ElementKind, "layout": LayoutSku, "epilogue": EpilogueKind, "arch": ArchSku,
    "backend": BackendKind, "math_precision": MathPrecision, "accumulator": ElementKind,
    "bit_stable_on_same_hardware": None, "deterministic": None,
}


def register(spec: OpSpec) -> None:
    """Add an op. Registering the same spec again changes nothing.

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
            raise InvalidProblemError(f"spec: an op named {spec.name!r} is registered already")
        for other in _specs.values():
            if other.descriptor_type is spec.descriptor_type:
                raise InvalidProblemError(
                    f"spec: {spec.descriptor_type.__name__} belongs to {other.name!r} already")
        _specs[spec.name] = spec


def _discover() -> None:
    global _discovered
    with _lock:
        if _discovered:
            return
        _discovered = True
        import importlib.metadata  # slow to import, and only needed here

        package = importlib.import_module("baracuda_kernels.ops")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            try:
                loaded = entry.load()
                register(loaded if isinstance(loaded, OpSpec) else loaded())
            except (ImportError, AttributeError, InvalidProblemError, TypeError) as error:
                # A broken plug-in must not take the library down with it.
                _log.warning("op entry point %r was not registered: %s", entry.value, error)


def ops() -> list[str]:
    """Names of all ops, sorted."""
    _discover()
    return sorted(_specs)


def get(name: str) -> OpSpec:
    """The op of that name.

    Raises
    ------
    UnsupportedError
        There is none; the message lists the names.
    """
    _discover()
    try:
        return _specs[name]
    except KeyError:
        raise UnsupportedError(f"op: got {name!r}, must be one of {', '.join(ops())}") from None


def skus(**filters) -> list[KernelSku]:
    """Every kernel of every op, in each op's order of preference.

    Parameters
    ----------
    **filters
        Any field of :class:`KernelSku` or :class:`PrecisionGuarantee`, with an enum member or its
        name: ``skus(op="RING_ATTENTION", math_precision="F32")``.

    Raises
    ------
    InvalidProblemError
        An unknown filter or value; the message lists the valid ones.
    """
    return [sku for _, _, sku in named_skus(**filters)]


def named_skus(**filters) -> list[tuple[str, str, KernelSku]]:
    """As :func:`skus`, as (op name, family name, SKU)."""
    wanted = {}
    for name, value in filters.items():
        if name not in _FILTERS:
            raise InvalidProblemError(
                f"filter: got {name!r}, must be one of {', '.join(_FILTERS)}")
        enum = _FILTERS[name]
        if enum is None:
            if not isinstance(value, bool):
                raise InvalidProblemError(f"{name}: got {value!r}, must be a bool")
        elif value is not None and not (name == "op" and isinstance(value, int)):
            value = enum.parse(value)
        wanted[name] = value
    return [(op, family, sku) for op in ops() for family, sku in _specs[op].skus()
            if all(_field(sku, name) == value for name, value in wanted.items())]


def _field(sku: KernelSku, name: str):
    return getattr(sku if hasattr(sku, name) else sku.precision_guarantee, name)


def explain(descriptor, arch=None, preference: PlanPreference | None = None) -> Explanation:
    """Which kernel ``select`` picks for a descriptor, and why not the others.

    Parameters
    ----------
    descriptor : an op's descriptor
    arch : ArchSku, str, int or tuple, optional
        "host", or a compute capability as "sm_90", "9.0", 90 or (9, 0). By default what a plan
        would use here: the current GPU, or the host.
    preference : PlanPreference, optional

    Raises
    ------
    InvalidProblemError
        The descriptor is no problem at all, or not a registered op's.
    """
    _discover()
    for spec in _specs.values():
        if type(descriptor) is spec.descriptor_type:
            return spec.explain(descriptor, arch, preference)
    types = ", ".join(sorted(s.descriptor_type.__name__ for s in _specs.values()))
    raise InvalidProblemError(
        f"descriptor: got {type(descriptor).__name__}, must be one of {types}")
