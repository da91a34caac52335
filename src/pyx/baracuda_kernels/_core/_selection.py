"""The choice of a kernel: candidates in order of preference, each with the reason if it is
refused."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from baracuda_kernels._core._architecture import Architecture
from baracuda_kernels._core._enums import ArchSku, Direction, ElementKind
from baracuda_kernels._core._errors import InvalidProblemError, UnsupportedError
from baracuda_kernels._core._sku import KernelSku, PlanPreference


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A kernel that was considered.

    Attributes
    ----------
    family : str
        Kernel family, such as "sm80".
    sku : KernelSku
        If the family does not take the descriptor's element, its SKU of another element.
    reason : str
        The reason of its refusal; empty if it fits.
    entry : object
        Data of the op's plans to run the kernel without another lookup. Opaque to others.
    """

    family: str
    sku: KernelSku
    reason: str = ""
    entry: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def accepted(self) -> bool:
        """Whether it fits."""
        return not self.reason

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return {
            "family": self.family,
            "accepted": self.accepted,
            "reason": self.reason,
            "sku": self.sku.to_dict(),
        }


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Which kernel a descriptor gets on an architecture, and why not the others.

    Attributes
    ----------
    op : str
    arch : Architecture
    candidates : tuple of Candidate
        In order of preference.
    direction : Direction
    """

    op: str
    arch: Architecture
    candidates: tuple[Candidate, ...]
    direction: Direction = Direction.FORWARD

    @property
    def chosen(self) -> Candidate | None:
        """The first candidate that fits, None if none does."""
        return next((c for c in self.candidates if c.accepted), None)

    @property
    def selected(self) -> KernelSku | None:
        """The SKU that ``select`` would pick, None if it would refuse."""
        chosen = self.chosen
        return None if chosen is None else chosen.sku

    @property
    def family(self) -> str | None:
        """The family of :attr:`selected`."""
        chosen = self.chosen
        return None if chosen is None else chosen.family

    def require(self) -> Candidate:
        """The chosen candidate.

        Raises
        ------
        UnsupportedError
            There is none; the message has the reason of each candidate.
        """
        chosen = self.chosen
        if chosen is None:
            reasons = "; ".join(f"{c.family}: {c.reason}" for c in self.candidates)
            raise UnsupportedError(
                f"{self._what}: no kernel fits on {self.arch}: {reasons or 'none is registered'}"
            )
        return chosen

    @property
    def _what(self) -> str:
        return self.op if self.direction is Direction.FORWARD else f"{self.op} {self.direction}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return {
            "op": self.op,
            "direction": self.direction.name,
            "arch": self.arch.name,
            "family": self.family,
            "selected": None if self.selected is None else self.selected.to_dict(),
            "candidates": [c.to_dict() for c in self.candidates],
        }

    def __str__(self) -> str:
        lines = [f"{self._what} on {self.arch}: {self.family or 'no kernel fits'}"]
        lines += [f"  {c.family}: {c.reason or 'fits'}" for c in self.candidates]
        return "\n".join(lines)


# The options and arguments of the command `explain` itself.
_RESERVED = ("op", "arch", "direction", "as_json", "json", "help", "self")


@dataclasses.dataclass(frozen=True)
class ProblemOption:
    """An option of the command ``explain`` that describes a problem of an op.

    Attributes
    ----------
    name : str
        A Python name: ``kv_heads`` is ``--kv-heads``. None that `explain` itself uses, such as
        ``arch``.
    type : type
        int, float, str, bool (a flag), or an enum of the vocabulary, given by the names of its
        members (of :class:`ElementKind` only those that the op takes).
    default : object
        Of that type, or None if the op computes the default.
    help : str
    """

    name: str
    type: type
    default: Any = None
    help: str = ""

    def __post_init__(self) -> None:
        if not _is_name(self.name) or self.name in _RESERVED:
            raise InvalidProblemError(
                f"name: got {self.name!r}, must be a Python name other than "
                f"{', '.join(_RESERVED)}"
            )
        if not isinstance(self.type, type):
            raise InvalidProblemError(f"type: got {self.type!r}, must be a type")


@dataclasses.dataclass(frozen=True)
class OpSpec:
    """An op as the registry knows it.

    Attributes
    ----------
    name : str
        A Python name that no other op has, such as "ring_attention".
    descriptor_type : type
        The op's descriptor class, the same for every direction.
    plan_types : Mapping
        Direction -> its plan class.
    skus : callable
        ``skus() -> iterable of (family, KernelSku)``: every kernel of every direction, in order of
        preference.
    candidates : callable
        ``candidates(descriptor, architecture, preference, direction) -> iterable of Candidate``,
        for a direction of ``plan_types``. Raises InvalidProblemError if the descriptor is invalid.
    options : tuple of ProblemOption
        The options of the command ``explain`` for the op. ``info`` shows the kernels for their
        defaults, in each dtype. An op without options is in neither command.
    describe : callable, optional
        ``describe(**values of the options) -> descriptor``; ``descriptor_type`` by default.
    """

    name: str
    descriptor_type: type
    plan_types: Mapping[Direction, type] = dataclasses.field(hash=False)
    skus: Callable[[], Iterable[tuple[str, KernelSku]]]
    candidates: Callable[[Any, Architecture, PlanPreference, Direction], Iterable[Candidate]]
    options: tuple[ProblemOption, ...] = ()
    describe: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.plan_types, Mapping) or not self.plan_types:
            raise InvalidProblemError(
                f"plan_types: got {self.plan_types!r}, must be a mapping of Direction to a plan "
                "type; OpSpec.forward_only takes a plan type alone"
            )
        plans = {Direction.parse(direction): plan for direction, plan in self.plan_types.items()}
        object.__setattr__(self, "plan_types", types.MappingProxyType(plans))
        if not _is_name(self.name):
            raise InvalidProblemError(f"name: got {self.name!r}, must be a Python name")
        if not isinstance(self.descriptor_type, type):
            raise InvalidProblemError(
                f"descriptor_type: got {self.descriptor_type!r}, must be a type")
        for name in ("skus", "candidates"):
            if not callable(getattr(self, name)):
                raise InvalidProblemError(
                    f"{name}: got {getattr(self, name)!r}, must be a function")
        if not isinstance(self.options, tuple) or not all(
            isinstance(option, ProblemOption) for option in self.options
        ):
            raise InvalidProblemError(
                f"options: got {self.options!r}, must be a tuple of ProblemOption")
        names = [option.name for option in self.options]
        if len(set(names)) < len(names):
            raise InvalidProblemError(
                f"options: got the names {', '.join(names)}, must be different ones")

    @classmethod
    def forward_only(
        cls,
        name: str,
        descriptor_type: type,
        plan_type: type,
        skus: Callable[[], Iterable[tuple[str, KernelSku]]],
        candidates: Callable[[Any, Architecture, PlanPreference], Iterable[Candidate]],
        **more: Any,
    ) -> OpSpec:
        """An op without gradients.

        Parameters
        ----------
        name, descriptor_type, skus
            As the attributes of those names.
        plan_type : type
            The plan class of the forward direction.
        candidates : callable
            ``candidates(descriptor, architecture, preference) -> iterable of Candidate``.
        **more
            The optional attributes.

        Raises
        ------
        InvalidProblemError
            An argument has the wrong type.
        """

        def forward(
            descriptor: Any, arch: Architecture, preference: PlanPreference, direction: Direction
        ) -> Iterable[Candidate]:
            return candidates(descriptor, arch, preference)

        return cls(name, descriptor_type, {Direction.FORWARD: plan_type}, skus, forward, **more)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions of the op."""
        return tuple(self.plan_types)

    @property
    def elements(self) -> tuple[ElementKind, ...]:
        """The element types that some kernel of the op takes, in the order of the enum."""
        return tuple(sorted({sku.element for _, sku in self.skus()}))

    @property
    def dtypes(self) -> dict[str, ElementKind]:
        """Name of a dtype -> its element, for all dtypes that the op takes."""
        # F32 and F32_STRICT have one dtype. Its name means the first.
        return {
            element.dtype_name: element
            for element in self.elements
            if element.dtype_name and ElementKind.of_dtype(element.dtype_name) is element
        }

    def plan_type(self, direction: Direction | str = Direction.FORWARD) -> type:
        """The plan class of a ``direction``, forward by default.

        Raises
        ------
        UnsupportedError
            The op does not have that direction.
        """
        direction = Direction.parse(direction, "direction")
        if direction not in self.plan_types:
            raise UnsupportedError(
                f"direction: got {direction}, must be one of {self.name}'s: "
                f"{', '.join(map(str, self.directions))}"
            )
        return self.plan_types[direction]

    def explain(
        self,
        descriptor: Any,
        arch: Architecture | ArchSku | str | int | tuple[int, int] | None = None,
        preference: PlanPreference | None = None,
        direction: Direction | str = Direction.FORWARD,
    ) -> Explanation:
        """The kernel that a problem of the op gets, and the reasons against the others.

        Parameters
        ----------
        descriptor : object
            An instance of :attr:`descriptor_type`.
        arch, preference, direction : optional
            As in :func:`baracuda_kernels.registry.explain`.

        Raises
        ------
        InvalidProblemError
            The descriptor has another type or is invalid, or the architecture or direction is
            unknown.
        UnsupportedError
            The op does not have that direction.
        """
        arch = Architecture.parse(arch)
        preference = PlanPreference() if preference is None else preference
        if not isinstance(preference, PlanPreference):
            raise InvalidProblemError(
                f"preference: got {type(preference).__name__}, must be a PlanPreference"
            )
        if not isinstance(descriptor, self.descriptor_type):
            raise InvalidProblemError(
                f"descriptor: got {type(descriptor).__name__}, must be a "
                f"{self.descriptor_type.__name__}"
            )
        direction = Direction.parse(direction, "direction")
        self.plan_type(direction)
        return Explanation(
            self.name,
            arch,
            tuple(self.candidates(descriptor, arch, preference, direction)),
            direction,
        )

    def problem(self, **values: Any) -> Any:
        """The descriptor with these values of :attr:`options`, and defaults for the others."""
        defaults = {option.name: option.default for option in self.options}
        return (self.describe or self.descriptor_type)(**{**defaults, **values})


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()
