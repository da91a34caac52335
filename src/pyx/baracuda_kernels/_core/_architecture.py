"""Where a kernel would run."""

from __future__ import annotations

import dataclasses
import enum
import operator
import re
from typing import Any

from baracuda_kernels._core import _info
from baracuda_kernels._core._enums import ArchSku
from baracuda_kernels._core._errors import InvalidProblemError

_TEXT = re.compile(r"(?:sm_?)?([0-9]{1,2}\.[0-9]|[0-9]{2,3})a?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The place where a kernel would run: the host, or a GPU of some compute capability.

    Attributes
    ----------
    compute_capability : int
        90 for 9.0; 0 for the host.
    """

    compute_capability: int

    @property
    def is_host(self) -> bool:
        """Whether it is the CPU."""
        return self.compute_capability == 0

    @property
    def name(self) -> str:
        """``"host"``, or such as ``"sm_90"``."""
        return "host" if self.is_host else f"sm_{self.compute_capability}"

    def __str__(self) -> str:
        return self.name

    @classmethod
    def parse(
        cls, value: Architecture | ArchSku | str | int | tuple[int, int] | None
    ) -> Architecture:
        """The architecture of a ``value`` such as an ArchSku, "host", "sm_90", "sm90a", "9.0", 90,
        (9, 0).

        None is the architecture of the current GPU, or the host without one.

        Raises
        ------
        InvalidProblemError
            Any other value.
        """
        if isinstance(value, Architecture):
            return value
        if value is None:
            return cls.here()
        if isinstance(value, ArchSku):
            value = value.name
        elif isinstance(value, enum.Enum):
            value = str(value)  # its number means something else
        number = _number(value)
        if isinstance(value, tuple) and len(value) == 2:
            major, minor = map(_number, value)
            if major is not None and minor is not None and 0 <= minor <= 9:
                number = major * 10 + minor
        if isinstance(value, str):
            if value.lower() == "host":
                return cls(0)
            text = _TEXT.fullmatch(value)
            number = int(text[1].replace(".", "")) if text else None
        if number is not None and 10 <= number < 1000:
            return cls(number)
        raise InvalidProblemError(
            f"arch: got {value!r}, must be an ArchSku, 'host', or a compute capability such as "
            "'sm_90', '9.0' or 90"
        )

    @classmethod
    def here(cls) -> Architecture:
        """The architecture of the current GPU, or the host without one."""
        return cls.of_device(_info.current_device())

    @classmethod
    def of_device(cls, device: int) -> Architecture:
        """The architecture of a ``device``, by its CUDA ordinal; -1 is the host.

        Raises
        ------
        CudaError
            There is no such device.
        """
        return cls(0 if device < 0 else _info.compute_capability(device))


def _number(value: Any) -> int | None:
    """The value as an int, None if it is none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
