"""The rate at which one GPU computes a step, from an evidence file or a card's measured figures.

Curves are interpolated linearly in the logarithm of the length. Beyond their ends they are
constant, except above the longest causal length: see `ComputeRates.tflops`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from baracuda_kernels._arguments import integer, number
from baracuda_kernels.errors import InvalidProblemError, UnsupportedError
from baracuda_kernels.predict._cards import Card, cards, find_card, require_card

Curve = tuple[tuple[float, float], ...]

_LONGEST = 2.0**30  # of all sequences
# Bounds of TFLOPS, and of picoseconds a byte. No card is near them, and arithmetic cannot overflow.
_LEAST, _MOST = 1e-9, 1e9


def _state_of(card: Card) -> Curve:
    """Picoseconds a byte of state, at every length."""
    return ((1.0, 1 / card.state_tbps),)


@dataclass(frozen=True)
class ComputeRates:
    """The rates of one GPU, by the length of the chunk.

    Parameters
    ----------
    full : tuple of (length, TFLOPS)
        Calls without a mask, in order of rising length.
    causal : tuple of (length, TFLOPS)
        Causal calls, counting only the visible half of the pairs.
    state : tuple of (chunk, picoseconds per byte), default 1/3 ps (3.0 TB/s, an H100) everywhere
        Time to load or store the state between steps that the kernel does not hide.
    tile_rows : int, default 128
        Query rows of a kernel's tile (in a backward keys). A block computes a tile, so with fewer
        tiles than SMs some SMs are idle.
    sources : tuple of str, default none
        Sources of the numbers.

    Raises
    ------
    InvalidProblemError
        If a curve is empty or not of pairs of numbers, its lengths do not rise, or a rate in it is
        not from 1e-9 to 1e9 (the state's may be 0), or `tile_rows` is no integer from 1 on.
    """

    full: Curve
    causal: Curve
    state: Curve = dataclasses.field(default_factory=lambda: _state_of(cards()[0]))
    tile_rows: int = 128
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("full", "causal", "state"):
            curve = _curve(name, getattr(self, name))
            object.__setattr__(self, name, curve)
            lengths, values = [x for x, _ in curve], [y for _, y in curve]
            rising = sorted(set(lengths)) == lengths
            if not curve or not rising or not all(0 < x < math.inf for x in lengths):
                raise InvalidProblemError(f"{name}: got {curve}, must be of rising lengths > 0")
            if not all(_LEAST <= y <= _MOST or (y == 0 and name == "state") for y in values):
                raise InvalidProblemError(
                    f"{name}: got {curve}, must be of numbers from {_LEAST:g} to {_MOST:g}"
                )
        object.__setattr__(self, "tile_rows", integer("tile_rows", self.tile_rows, least=1))

    @staticmethod
    def constant(tflops: float, causal_tflops: float | None = None) -> ComputeRates:
        """The same rate at every length.

        Parameters
        ----------
        tflops : float
            The rate without a mask, in 10**12 flops a second.
        causal_tflops : float, default `tflops`
            The causal rate.

        Raises
        ------
        InvalidProblemError
            If one is not from 1e-9 to 1e9.
        """
        tflops = number("tflops", tflops)
        causal_tflops = tflops if causal_tflops is None else number("causal_tflops", causal_tflops)
        return ComputeRates(
            full=((1.0, tflops),),
            causal=((1.0, causal_tflops), (_LONGEST, causal_tflops)),
            sources=(
                f"given: {tflops:g} TFLOPS, causal {causal_tflops:g}",
                _stand_in_state(cards()[0]),
            ),
        )

    def tflops(self, length: float, causal: bool = False) -> float:
        """TFLOPS of a call.

        Above the longest causal length, the loss against calls without a mask falls as 1/length: it
        comes from the tiles on the diagonal, whose share of all tiles falls as 1/length.

        Parameters
        ----------
        length : float
            Number of rows of a chunk; 1 or more.
        causal : bool, default False
        """
        longest, at_longest = self.causal[-1]
        if not causal or length <= longest:
            return _interpolate(self.causal if causal else self.full, length)
        loss = _interpolate(self.full, longest) / at_longest - 1
        return _interpolate(self.full, length) / (1 + loss * longest / length)

    def state_seconds_per_byte(self, length: float) -> float:
        """Seconds to load or store one byte of state, with chunks of `length` rows."""
        return _interpolate(self.state, length) * 1e-12


def default_rates(
    family: str, dtype: str, head_dim: int, arch: Any = None, *, backward: bool = False
) -> ComputeRates:
    """The measured figures of ``cards.json``.

    Parameters
    ----------
    family : str
        Kernel family.
    dtype : str
        f16, bf16, f32 or f64. f16 has the figures of bf16.
    head_dim : int
        The figures are those of this head_dim, else of the next larger measured one, else of the
        largest.
    arch : ArchSku, str, int or tuple, optional
        An architecture such as ``"sm_90"``; by default the H100's.
    backward : bool, default False
        The figures of the gradients.

    Raises
    ------
    InvalidProblemError
        If the architecture is unknown, or `head_dim` is no integer from 1 on.
    UnsupportedError
        If nothing was measured on the architecture, or not for the family and dtype.
    """
    card = cards()[0] if arch is None else require_card(arch)
    head_dim = integer("head_dim", head_dim, least=1)
    measured = "bf16" if dtype == "f16" else dtype
    figures = card.families.get(family)
    tables = {} if figures is None else (figures.backward if backward else figures.tflops)
    table = tables.get(measured)
    what = "gradients by " if backward else ""
    if figures is None or table is None:
        raise UnsupportedError(
            f"family, dtype: got {what}the family {family} with {dtype}, must be measured on an "
            f"{card.name}: give measured rows, or TFLOPS"
        )
    source = "docs/performance.md" if backward else figures.source
    sources = [f"{source} ({card.name}), {what}{family} {dtype} D {head_dim}"]
    taken = min((d for d in table if d >= head_dim), default=max(table))
    if measured != dtype or taken != head_dim:
        sources.append(f"those of {measured} D {taken} stand in")
    return ComputeRates(
        full=tuple((n, rate) for n, rate, _ in table[taken]),
        causal=tuple((n, rate) for n, _, rate in table[taken]),
        state=_state_of(card),
        tile_rows=_BACKWARD_TILE if backward else _tile_rows(family, dtype, head_dim),
        sources=tuple(sources),
    )


def _stand_in_state(card: Card) -> str:
    return f"state: taken at {card.state_tbps:.1f} TB/s ({card.name})"


# Keys of a tile in most backward kernels on tensor cores, taken for all kernels.
_BACKWARD_TILE = 128


def _tile_rows(family: str, dtype: str, head_dim: int) -> int:
    """`block_m` of the kernels' configurations (on sm80 at D 256, that of the narrow one)."""
    if family == "sm90a":
        return 192 if head_dim <= 64 else 128
    if family == "simt":
        return (64 if head_dim <= 128 else 32) // (2 if dtype == "f64" else 1)
    return 128 if head_dim <= 128 else 64


def measured_rates(
    evidence: Mapping[str, Any],
    family: str,
    dtype: str,
    head_dim: int,
    arch: Any = None,
    sms: int | None = None,
    *,
    backward: bool = False,
) -> ComputeRates:
    """Rates of an evidence file (``benchmarks/results/<card>.json``).

    TFLOPS come from its ``forward`` rows, by key length; rows of one length are averaged. The cost
    of the state comes from its ``ring_tax`` rows that are not causal: the time of the steps beyond
    their flops at that rate, over the bytes of state that they loaded and stored. If the file lacks
    a figure, it comes from `default_rates`, and `sources` says so. The rates of a backward come
    from the file's ``backward`` rows of kernels that are not deterministic. A backward has no
    state: its `state` is the card's, and gives the time of adding gradients.

    Parameters
    ----------
    evidence : mapping
        With ``rows``; its ``card`` is named in `sources`.
    family, dtype, head_dim : str, str and int
        Select the rows.
    arch : ArchSku, str, int or tuple, optional
        The architecture of the file's card, such as ``"sm_90"``; by default an H100's.
    sms : int, optional
        Number of SMs of the file's card; by default that of `arch`.
    backward : bool, default False
        The rates of the gradients.

    Raises
    ------
    InvalidProblemError
        If `evidence` has no rows, a row lacks a field, or `sms` is no integer from 1 on.
    UnsupportedError
        If neither the file nor `default_rates` has figures for the family and dtype, or if the
        architecture is unknown and `sms` is not given.
    """
    rows = evidence.get("rows") if isinstance(evidence, Mapping) else None
    if not isinstance(rows, list):
        raise InvalidProblemError("measured: got no evidence, must be an object with rows")
    wanted = {"family": family, "dtype": dtype, "head_dim": head_dim}
    label = f"{evidence.get('card', 'measured')}, {family} {dtype} D {head_dim}"
    name = "backward" if backward else "forward"
    tile_rows = _BACKWARD_TILE if backward else _tile_rows(family, dtype, head_dim)
    only = {**wanted, "guarantee": "fast"} if backward else wanted
    card = cards()[0] if arch is None else find_card(arch)
    sms = (card or require_card(arch)).sms if sms is None else integer("sms", sms, least=1)
    sources = []
    try:
        full = _call_curve(_matching(rows, name, {**only, "causal": False}))
        causal = _call_curve(_matching(rows, name, {**only, "causal": True}))
        if not (full and causal):
            default = default_rates(family, dtype, head_dim, arch, backward=backward)
            for what, curve in ((name, full), (f"causal {name}", causal)):
                if not curve:
                    sources.append(f"{what} rows: none measured for {family} {dtype} D {head_dim}")
            sources.extend(default.sources)
            full, causal = full or default.full, causal or default.causal
        else:
            sources.append(f"{name} rows: {label}")
        rates = ComputeRates(full, causal, tile_rows=tile_rows)
        state = () if backward else _state_curve(_matching(rows, "ring_tax", {**wanted, "causal": False}), rates, sms)
    except (AttributeError, KeyError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise InvalidProblemError(
            f"measured: got a row with {error!r}, must be a row of an evidence file"
        ) from error
    if state:
        sources.append(f"ring_tax rows: {label}")
    elif backward:  # the additions of gradients
        state = _state_of(card or cards()[0])
    else:
        sources.append(f"state: no ring_tax rows for {family} {dtype} D {head_dim}")
        sources.append(_stand_in_state(card or cards()[0]))
        state = _state_of(card or cards()[0])
    return dataclasses.replace(rates, state=state, sources=tuple(sources))


def _matching(
    rows: Iterable[Mapping[str, Any]], name: str, wanted: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    named = [row for row in rows if row["name"] == name]
    return [r for r in named if all(r["params"].get(k) == v for k, v in wanted.items())]


def _call_curve(rows: Iterable[Mapping[str, Any]]) -> Curve:
    def point(row: Mapping[str, Any]) -> tuple[float, float]:
        p = row["params"]
        pairs = p["query_len"] * p["key_len"] / (2 if p["causal"] else 1)
        products = 10 if row["name"] == "backward" else 4
        flops = products * p["batch"] * p["heads"] * pairs * p["head_dim"]
        return p["key_len"], flops / row["ours"] / 1e9

    return _averaged(point(row) for row in rows)


def _state_curve(rows: Iterable[Mapping[str, Any]], rates: ComputeRates, sms: int) -> Curve:
    def point(row: Mapping[str, Any]) -> tuple[float, float]:
        p = row["params"]
        itemsize = 8 if p["dtype"] == "f64" else 4
        # All steps but the last store the state, all but the first load it.
        moved = 2 * (p["ranks"] - 1) * p["heads"] * p["chunk"] * (p["head_dim"] + 2) * itemsize
        tiles = p["heads"] * -(-p["chunk"] // rates.tile_rows)
        flops = 4 * p["heads"] * p["chunk"] ** 2 * p["ranks"] * p["head_dim"]
        alone_ms = flops / rates.tflops(p["chunk"]) / 1e9 / min(tiles / sms, 1.0)
        return p["chunk"], max(row["ours"] - alone_ms, 0.0) * 1e9 / moved

    return _averaged(point(row) for row in rows)


def _curve(name: str, given: Any) -> Curve:
    """The points as pairs of floats."""
    try:
        return tuple((number(name, x), number(name, y)) for x, y in given)
    except (TypeError, ValueError):
        raise InvalidProblemError(
            f"{name}: got {given!r}, must be pairs of a length and a rate"
        ) from None


def _averaged(points: Iterable[tuple[float, float]]) -> Curve:
    by_length: dict[float, list[float]] = {}
    for length, value in points:
        by_length.setdefault(float(length), []).append(value)
    return tuple((n, sum(values) / len(values)) for n, values in sorted(by_length.items()))


def _interpolate(curve: Curve, length: float) -> float:
    lengths, values = zip(*curve, strict=True)
    return float(np.interp(np.log2(max(length, 1.0)), np.log2(lengths), values))
