# cython: language_level=3
"""How a kernel is chosen: candidates in order of preference, each with its reason to refuse."""

import dataclasses
from collections.abc import Callable

from libc.stdint cimport int32_t

from baracuda_kernels._core cimport c_api
from baracuda_kernels._core._status cimport check

from baracuda_kernels._core._enums import ArchSku
from baracuda_kernels._core._errors import InvalidProblemError, UnsupportedError
from baracuda_kernels._core._sku import KernelSku, PlanPreference


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Where a kernel would run: the host, or a GPU of some compute capability.

    Attributes
    ----------
    compute_capability : int
        90 for 9.0; 0 for the host.
    """

    compute_capability: int

    @property
    def is_host(self) -> bool:
        return self.compute_capability == 0

    @property
    def name(self) -> str:
        return "host" if self.is_host else f"sm_{self.compute_capability}"

    def __str__(self) -> str:
        return self.name

    @classmethod
    def parse(cls, value) -> "Architecture":
        """From an ArchSku, "host", "sm_90", "sm90a", "9.0", 90 or (9, 0).

        None is what a plan would use here: the current GPU's, or the host's where there is none.
        """
        if isinstance(value, Architecture):
            return value
        if value is None:
            return cls.here()
        if isinstance(value, ArchSku):
            value = value.name
        if isinstance(value, tuple) and len(value) == 2:
            value = value[0] * 10 + value[1]
        if isinstance(value, str):
            text = value.lower().removeprefix("sm").removeprefix("_").removesuffix("a")
            if value.lower() == "host":
                return cls(0)
            text = text.replace(".", "")
            value = int(text) if text.isdigit() else value
        if isinstance(value, int) and not isinstance(value, bool) and 10 <= value < 1000:
            return cls(value)
        raise InvalidProblemError(
            f"arch: got {value!r}, must be an ArchSku, 'host', or a compute capability such as "
            "'sm_90', '9.0' or 90")

    @classmethod
    def here(cls) -> "Architecture":
        """The current GPU's architecture; the host's without a usable one."""
        cdef int32_t count = 0, device = 0
        if c_api.baracuda_cuda_device_count(&count) != c_api.BARACUDA_OK or count == 0:
            return cls(0)
        check(c_api.baracuda_cuda_current_device(&device))
        return cls.of_device(device)

    @classmethod
    def of_device(cls, int device) -> "Architecture":
        """That of a CUDA ordinal; -1 is the host."""
        cdef c_api.baracuda_cuda_device info
        if device < 0:
            return cls(0)
        check(c_api.baracuda_cuda_device_info(device, &info))
        return cls(info.compute_capability)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One kernel that was considered.

    Attributes
    ----------
    family : str
        Kernel family, e.g. "sm80".
    sku : KernelSku
    reason : str
        Why it was refused; empty if it fits.
    """

    family: str
    sku: KernelSku
    reason: str = ""

    @property
    def accepted(self) -> bool:
        return not self.reason

    def to_dict(self) -> dict:
        return {"family": self.family, "accepted": self.accepted, "reason": self.reason,
                "sku": self.sku.to_dict()}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Which kernel a descriptor gets on an architecture, and why not the others.

    Attributes
    ----------
    op : str
    arch : Architecture
    candidates : tuple of Candidate
        In order of preference.
    """

    op: str
    arch: Architecture
    candidates: tuple

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
        """The chosen candidate; an :class:`UnsupportedError` with every reason if there is none."""
        chosen = self.chosen
        if chosen is None:
            reasons = "; ".join(f"{c.family}: {c.reason}" for c in self.candidates)
            raise UnsupportedError(
                f"{self.op}: no kernel fits on {self.arch}: {reasons or 'none is registered'}")
        return chosen

    def to_dict(self) -> dict:
        return {"op": self.op, "arch": self.arch.name, "family": self.family,
                "selected": None if self.selected is None else self.selected.to_dict(),
                "candidates": [c.to_dict() for c in self.candidates]}

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.arch}: {self.family or 'no kernel fits'}"]
        lines += [f"  {c.family}: {c.reason or 'fits'}" for c in self.candidates]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class OpSpec:
    """What the registry knows of an op.

    Attributes
    ----------
    name : str
        Unique, e.g. "ring_attention".
    descriptor_type, plan_type : type
        The op's descriptor and plan classes.
    skus : callable
        ``skus() -> iterable of (family, KernelSku)``: every kernel, in order of preference.
    candidates : callable
        ``candidates(descriptor, architecture, preference) -> iterable of Candidate``; raises
        InvalidProblemError for a descriptor that is no problem at all.
    """

    name: str
    descriptor_type: type
    plan_type: type
    skus: Callable
    candidates: Callable

    def explain(self, descriptor, arch=None, preference=None) -> Explanation:
        """See :func:`baracuda_kernels.registry.explain`."""
        arch = Architecture.parse(arch)
        preference = PlanPreference() if preference is None else preference
        if not isinstance(preference, PlanPreference):
            raise InvalidProblemError(
                f"preference: got {type(preference).__name__}, must be a PlanPreference")
        if not isinstance(descriptor, self.descriptor_type):
            raise InvalidProblemError(
                f"descriptor: got {type(descriptor).__name__}, must be a "
                f"{self.descriptor_type.__name__}")
        return Explanation(self.name, arch, tuple(self.candidates(descriptor, arch, preference)))
