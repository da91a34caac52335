"""The GPUs with measured figures: ``cards.json``, beside this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baracuda_kernels._core._architecture import Architecture
from baracuda_kernels.errors import UnsupportedError

Points = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class FamilyFigures:
    """The measured rates of a kernel family on a card, and the page with the measurements.

    `tflops` has (length, TFLOPS without a mask, causal TFLOPS) by dtype and head_dim. `backward`
    has the same for the gradients, with 2.5 times the flops.
    """

    source: str
    tflops: dict[str, dict[int, Points]]
    backward: dict[str, dict[int, Points]]


@dataclass(frozen=True)
class Card:
    """A GPU and its measured figures.

    Attributes
    ----------
    name, arch : str
        Such as ``"H100"`` and ``"sm_90"``.
    sms : int
        Number of SMs.
    memory_gib : float
        GiB that the op may take.
    state_tbps : float
        TB/s of loading and storing the state between steps.
    families : dict
        Kernel family -> its rates and their source.
    """

    name: str
    arch: str
    sms: int
    memory_gib: float
    state_tbps: float
    families: dict[str, FamilyFigures]


def cards() -> tuple[Card, ...]:
    """All cards. The first one is the default."""
    return _CARDS


def find_card(arch: Any) -> Card | None:
    """The card of an architecture `arch` such as ``"sm_90"``; None if none was measured.

    Raises
    ------
    InvalidProblemError
        `arch` is not an architecture.
    """
    wanted = Architecture.parse(arch).name
    return next((card for card in cards() if card.arch == wanted), None)


def require_card(arch: Any) -> Card:
    """The card of an architecture; `UnsupportedError` if none was measured."""
    card = find_card(arch)
    if card is None:
        raise UnsupportedError(
            f"arch: got {Architecture.parse(arch).name}, must be one with measured rates "
            f"({measured_archs()}), or give your own: --tflops or --measured "
            "(ComputeRates.constant, or measured_rates with sms)"
        )
    return card


def measured_archs() -> str:
    """The names of the measured architectures, for messages."""
    return ", ".join(card.arch for card in cards())


def _card(entry: dict[str, Any]) -> Card:
    families = {
        name: FamilyFigures(
            family["source"], *(_tables(family[name]) for name in ("tflops", "backward"))
        )
        for name, family in entry["families"].items()
    }
    own = ("name", "arch", "sms", "memory_gib", "state_tbps")
    return Card(**{name: entry[name] for name in own}, families=families)


def _tables(by_dtype: dict[str, Any]) -> dict[str, dict[int, Points]]:
    return {
        dtype: {int(head_dim): _points(rows) for head_dim, rows in by_head_dim.items()}
        for dtype, by_head_dim in by_dtype.items()
    }


def _points(rows: list[list[float | None]]) -> Points:
    """The rows as floats. A causal rate that was not measured is estimated: it has the next row's
    ratio to the rate without a mask."""
    points: list[tuple[float, float, float]] = []
    for length, full, causal in reversed(rows):
        assert length is not None and full is not None
        if causal is None:
            _, next_full, next_causal = points[-1]
            causal = next_causal * full / next_full
        points.append((float(length), float(full), float(causal)))
    return tuple(reversed(points))


_CARDS = tuple(
    _card(entry)
    for entry in json.loads(Path(__file__).with_name("cards.json").read_text(encoding="utf-8"))
)
