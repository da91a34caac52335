"""Times and sizes as text."""

from __future__ import annotations

import math

# The end of a unit's range, its seconds, and its name.
_TIMES = ((1e-3, 1e-6, "\u00b5s"), (1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"),
          (48 * 3600.0, 3600.0, "h"), (1000 * 86400.0, 86400.0, "days"),
          (math.inf, 365.25 * 86400.0, "years"))  # fmt: skip
_SIZES = ((2.0**20, 2.0**10, "KiB"), (2.0**30, 2.0**20, "MiB"), (2.0**40, 2.0**30, "GiB"),
          (math.inf, 2.0**40, "TiB"))  # fmt: skip


def duration(seconds: float) -> str:
    """A time as text, such as ``"461 ms"`` or ``"21.3 days"``: three digits and a unit."""
    if seconds == 0:
        return "0"
    return _in_units(seconds, _TIMES)


def size(nbytes: float) -> str:
    """A size as text, such as ``"32.5 MiB"``: three digits and a unit."""
    return "0" if nbytes == 0 else _in_units(nbytes, _SIZES)


def _in_units(value: float, units: tuple[tuple[float, float, str], ...]) -> str:
    # A value that rounds to the end of a unit gets the next unit: 0.9996 ms is 1 ms.
    _, scale, name = next(unit for unit in units if value < unit[0] * 0.9995 or unit is units[-1])
    number = value / scale
    digits = max(0, 2 - math.floor(math.log10(number))) if number < 1000 else 0
    text = f"{number:.{min(digits, 3)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {name}"
