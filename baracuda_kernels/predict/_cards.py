"""The cards that the model has measured figures of: ``cards.json``, beside this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baracuda_kernels._core._selection import Architecture
from baracuda_kernels.errors import UnsupportedError

Points = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class FamilyFigures:
    """What a kernel family reaches on a card, and the page that says so.

    `tflops` has (length, TFLOPS without a mask, causal) by dtype and head_dim; `backward` the same of
    the gradients, whose flops are 2.5 times as many.
    """

    source: str
    tflops: dict[str, dict[int, Points]]
    backward: dict[str, dict[int, Points]]


@dataclass(frozen=True)
class Card:
    """A GPU, and what was measured on it.

    Attributes
    ----------
    name, arch : str
        As in ``"H100"`` and ``"sm_90"``.
    sms : int
        SMs.
    memory_gib : float
        GiB that the op may take.
    state_tbps : float
        TB/s at which it loads and stores the state between steps.
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
    """All of them; where no card is named, the first one is meant."""
    return _CARDS


def find_card(arch: Any) -> Card | None:
    """The card of an architecture `arch`, as in ``"sm_90"``; None where none was measured.

    Raises
    ------
    InvalidProblemError
        It is no architecture.
    """
    wanted = Architecture.parse(arch).name
    return next((card for card in cards() if card.arch == wanted), None)


def require_card(arch: Any) -> Card:
    """The card of an architecture; `UnsupportedError` where none was measured."""
    card = find_card(arch)
    if card is None:
        raise UnsupportedError(
            f"arch: got {Architecture.parse(arch).name}, must be one with measured rates "
            f"({measured_archs()}), or give your own: --tflops or --measured "
            "(ComputeRates.constant, or measured_rates with sms)"
        )
    return card


def measured_archs() -> str:
    """Their names, for messages."""
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
    """The rows; a causal rate that was not timed loses the part that the next one does."""
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
