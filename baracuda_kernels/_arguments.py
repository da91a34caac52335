"""Reading arguments as users have them: NumPy's scalars, lists, arrays of any kind.

What cannot be read is an `InvalidProblemError` that names the argument, what it was and what it
must be.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np

from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels.errors import InvalidProblemError


def integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """The value as an int; a bool, a float or a text is none, and neither is one out of range."""
    number = None
    if not isinstance(value, (bool, np.bool_, np.ndarray)):
        try:
            number = operator.index(value)
        except TypeError:
            pass
    if number is None or (least is not None and number < least) or (
        most is not None and number > most
    ):
        bounds = "" if least is None else f" from {least}" if most is not None else f" >= {least}"
        bounds += "" if most is None else f" to {most}"
        raise InvalidProblemError(f"{name}: got {_shown(value)}, must be an integer{bounds}")
    return number


def flag(name: str, value: Any) -> bool:
    """The value as a bool: Python's or NumPy's, and nothing that is merely true."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidProblemError(f"{name}: got {_shown(value)}, must be a bool")
    return bool(value)


def number(name: str, value: Any) -> float:
    """The value as a float; a bool or a text is none."""
    if isinstance(value, (bool, np.bool_, str, bytes)) or np.ndim(value) != 0:
        raise InvalidProblemError(f"{name}: got {_shown(value)}, must be a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidProblemError(f"{name}: got {_shown(value)}, must be a number") from None


def layout_of(value: Any, name: str = "sequence_layout") -> SequenceLayout:
    """The value as a layout: a member, its name in any case, or its number."""
    try:
        return SequenceLayout.parse(value)
    except InvalidProblemError:
        names = ", ".join(repr(str(member).lower()) for member in SequenceLayout)
        raise InvalidProblemError(f"{name}: got {_shown(value)}, must be one of {names}") from None


def array(name: str, value: Any) -> Any:
    """An array of any library as it is, lists as NumPy arrays; what is no array is refused.

    NumPy's subclasses become plain arrays, so that a memmap and an ndarray are alike. A masked
    array is refused: its mask would be lost.
    """
    if isinstance(value, (list, tuple)):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise InvalidProblemError(f"{name}: got a list that is no array ({error})") from None
    if isinstance(value, np.ndarray):
        masked = sys.modules.get("numpy.ma")  # whoever has one has imported it
        if masked is not None and isinstance(value, masked.MaskedArray):
            raise InvalidProblemError(
                f"{name}: got a masked array, must be an array without a mask (its mask would be "
                "lost: fill or cut it first)"
            )
        return np.asarray(value)
    if not hasattr(value, "shape"):
        raise InvalidProblemError(f"{name}: got {_shown(value)}, must be an array")
    return value


def library_of(x: Any) -> str:
    """``"numpy"``, ``"torch"``, ``"cupy"``, ``"jax"``…: whose array it is, subclasses included."""
    if isinstance(x, np.ndarray):
        return "numpy"
    for kind in type(x).__mro__:
        root = kind.__module__.partition(".")[0]
        if root in ("torch", "cupy", "jax", "jaxlib"):
            return "jax" if root == "jaxlib" else root
    return type(x).__module__.partition(".")[0]


def _shown(value: Any) -> str:
    """The value, or where it is long its type."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
