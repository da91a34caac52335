"""Reads arguments as users give them: NumPy's scalars, lists, arrays of any kind.

A wrong argument is an `InvalidProblemError` that names the argument, what it was and what it must
be.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np

from baracuda_kernels._core._enums import SequenceLayout
from baracuda_kernels.errors import InvalidProblemError


def integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """The value as an int. A bool, a float, a text or a number out of range is refused."""
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
    """The value as a bool. Only Python's and NumPy's bools are taken."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidProblemError(f"{name}: got {_shown(value)}, must be a bool")
    return bool(value)


def number(name: str, value: Any) -> float:
    """The value as a float. A bool, a text, a complex number or a time is refused."""
    refused = (bool, np.bool_, str, bytes, list, tuple, complex, np.complexfloating, np.timedelta64)
    if isinstance(value, refused) or np.ndim(value) != 0:
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
    """An array of any library as it is, and a list as a NumPy array. Other values are refused.

    NumPy's subclasses, such as a memmap, become plain arrays. A masked array is refused: its mask
    would be lost.
    """
    if isinstance(value, (list, tuple)):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise InvalidProblemError(
                f"{name}: got a list that is no array, must be one of equal rows ({error})"
            ) from None
    if isinstance(value, np.ndarray):
        masked = sys.modules.get("numpy.ma")  # imported if there is a masked array
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
    """The value as text, or its type if the text is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
